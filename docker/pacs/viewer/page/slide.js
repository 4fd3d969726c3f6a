// One slide in dicom-microscopy-viewer, its segmentations over it, and the controls beside it.

import { client } from './archive.js'
import { srgb } from './cielab.js'

const { color, events, setLogLevel, viewer: { VolumeImageViewer } } = window.dicomMicroscopyViewer

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const STEP_PX = 128
const NO_COLOUR = [128, 128, 128]

// A segmentation whose coarsest level has more tiles than the slide's is drawn until it appears this many times smaller
// than that level. Farther away, the viewer would fetch all of its tiles: thousands, where it has but the finest level.
const SMALLEST = 4

// The viewer starts its workers from here; without it the slide stays blank.
window.PUBLIC_LIB_URL = '/dicom-microscopy-viewer/'
setLogLevel('ERROR')

/**
 * Show the slide of `images`, its pyramid's levels, under `segmentations`, each a list of instances.
 *
 * Return how many segmentations cannot be shown; the slide and the others are.
 */
export function openSlide (images, segmentations, complain) {
  const viewport = document.getElementById('viewport')
  let adding = false
  const viewer = new VolumeImageViewer({
    client,
    metadata: images,
    controls: ['overview'],
    errorInterceptor: error => {
      if (!adding) {
        complain(error)
      }
      return error
    }
  })
  announceLoading(viewport)
  viewer.render({ container: viewport })
  addNavigation(viewport, viewer.getMap())
  const ofSlide = fewestTiles(images.filter(image => image.ImageType[2] === 'VOLUME'))
  let shown = 0
  adding = true
  for (const instances of segmentations) {
    try {
      addSegmentation(viewer, instances, { visible: shown === 0, limited: fewestTiles(instances) > ofSlide })
      shown += 1
    } catch (error) {
      console.warn(`A segmentation cannot be shown: ${error.message}`)
      segmentsOf(viewer, instances).forEach(segment => viewer.removeSegment(segment.uid))
    }
  }
  adding = false
  announceDistance(viewer.getMap())
  return segmentations.length - shown
}

/** Mark the viewport as busy for as long as frames are on their way. */
function announceLoading (viewport) {
  let frames = 0
  const count = change => {
    frames += change
    viewport.setAttribute('aria-busy', frames > 0)
  }
  viewport.addEventListener(events.EVENTS.FRAME_LOADING_STARTED, () => count(1))
  viewport.addEventListener(events.EVENTS.FRAME_LOADING_ENDED, () => count(-1))
}

/** Let buttons and keys do what the mouse does. */
function addNavigation (viewport, map) {
  const view = map.getView()
  const zoom = levels => view.adjustZoom(levels)
  const whole = () => view.fit(view.getProjection().getExtent(), { size: map.getSize() })
  const keys = { '+': () => zoom(1), '-': () => zoom(-1), 0: whole }

  document.getElementById('zoom-in').addEventListener('click', keys['+'])
  document.getElementById('zoom-out').addEventListener('click', keys['-'])
  document.getElementById('whole').addEventListener('click', whole)
  viewport.addEventListener('keydown', event => {
    if (event.key in ARROWS) {
      const centre = map.getPixelFromCoordinate(view.getCenter())
      view.setCenter(map.getCoordinateFromPixel(centre.map((px, axis) => px + STEP_PX * ARROWS[event.key][axis])))
    } else if (event.key in keys) {
      keys[event.key]()
    } else {
      return
    }
    event.preventDefault()
  })
}

/** Return the number of tiles of the level that has the fewest. */
function fewestTiles (levels) {
  return Math.min(...levels.map(level =>
    Math.ceil(level.TotalPixelMatrixColumns / level.Columns) * Math.ceil(level.TotalPixelMatrixRows / level.Rows)
  ))
}

function limitDistance (layer) {
  const [coarsest] = layer.getSource().getTileGrid().getResolutions()
  layer.setMaxResolution(SMALLEST * coarsest)
}

/** Say when the slide is too far away for its segments. */
function announceDistance (map) {
  const view = map.getView()
  const tell = () => {
    const isFar = map.getAllLayers().some(layer => view.getResolution() >= layer.getMaxResolution())
    document.getElementById('distance').hidden = !isFar
  }
  view.on('change:resolution', tell)
  tell()
}

function segmentsOf (viewer, [{ SeriesInstanceUID }]) {
  return viewer.getAllSegments().filter(segment => segment.seriesInstanceUID === SeriesInstanceUID)
}

/** List a segmentation's segments with a checkbox each, and show them when `visible`; from afar not when `limited`. */
function addSegmentation (viewer, instances, { visible, limited }) {
  const layers = viewer.getMap().getLayers()
  const others = layers.getLength()
  viewer.addSegments(instances)
  if (limited) {
    layers.getArray().slice(others).forEach(limitDistance)
  }
  const { SegmentSequence, SeriesDescription } = instances[0]
  const opacity = document.getElementById('opacity')

  const group = document.createElement('fieldset')
  const legend = document.createElement('legend')
  legend.textContent = SeriesDescription || 'Segmentation'
  group.append(legend)

  const shown = []
  for (const segment of segmentsOf(viewer, instances)) {
    const item = SegmentSequence.find(item => Number(item.SegmentNumber) === segment.number)
    const rgb = item.RecommendedDisplayCIELabValue ? srgb(item.RecommendedDisplayCIELabValue) : NO_COLOUR
    // The first entry stands for "not in the segment", and is transparent.
    const palette = color.buildPaletteColorLookupTable({ data: [rgb, rgb], firstValueMapped: 0 })
    const show = () => viewer.showSegment(segment.uid, {
      opacity: Number(opacity.value), paletteColorLookupTable: palette
    })
    const box = document.createElement('input')
    box.type = 'checkbox'
    box.checked = visible
    box.addEventListener('change', () => box.checked ? show() : viewer.hideSegment(segment.uid))
    shown.push(segment.uid)
    group.append(labelled(box, rgb, segment.label))
    if (visible) {
      show()
    }
  }
  opacity.addEventListener('input', () => {
    shown.forEach(uid => viewer.setSegmentStyle(uid, { opacity: Number(opacity.value) }))
  })
  document.getElementById('segments').append(group)
}

function labelled (box, rgb, text) {
  const swatch = document.createElement('span')
  swatch.className = 'swatch'
  swatch.style.backgroundColor = `rgb(${rgb})`
  const label = document.createElement('label')
  label.append(box, swatch, text)
  return label
}
