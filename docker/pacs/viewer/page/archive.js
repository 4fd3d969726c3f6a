// What the page asks the archive, in the words of DICOMweb (DICOM PS3.18): QIDO-RS to find, WADO-RS for metadata.

import { api } from './dicomweb-client/dicomweb-client.es.js'

const { metadata } = window.dicomMicroscopyViewer

// Keywords of the attributes in DICOM's JSON, which names them by tag.
const TAGS = {
  AccessionNumber: '00080050',
  ReferencedSeriesSequence: '00081115',
  SOPClassUID: '00080016',
  SeriesDescription: '0008103E',
  SeriesInstanceUID: '0020000E',
  StudyDate: '00080020',
  StudyInstanceUID: '0020000D'
}

// Segmentation Storage. A Label Map Segmentation has modality SEG too, and the viewer takes none.
const SEGMENTATION = '1.2.840.10008.5.1.4.1.1.66.4'

export const client = new api.DICOMwebClient({
  url: new URL('/dicom-web', window.location.href).href,
  verbose: false
})

/** Return every slide series of the archive, newest study first, with how many segmentations its study holds. */
export async function slides () {
  const includefield = [TAGS.AccessionNumber, TAGS.StudyDate, TAGS.SeriesDescription].join(',')
  const [found, segmentations] = await Promise.all([
    client.searchForSeries({ queryParams: { Modality: 'SM', includefield } }),
    client.searchForSeries({ queryParams: { Modality: 'SEG' } })
  ])
  const studies = segmentations.map(series => plain(series).StudyInstanceUID)
  return found
    .map(plain)
    .map(slide => ({ ...slide, segmentations: studies.filter(uid => uid === slide.StudyInstanceUID).length }))
    .sort((a, b) => b.StudyDate.localeCompare(a.StudyDate))
}

/** Return the pyramid's levels of a slide series, without label and overview images. */
export async function levels (studyInstanceUID, seriesInstanceUID) {
  const instances = await client.retrieveSeriesMetadata({ studyInstanceUID, seriesInstanceUID })
  return instances
    .map(instance => new metadata.VLWholeSlideMicroscopyImage({ metadata: instance }))
    .filter(image => ['VOLUME', 'THUMBNAIL'].includes(image.ImageType[2]))
}

/**
 * Return the segmentations in a study that were made of one slide series, newest first and of one moment those of newer
 * versions first: for each its instances; and the number of those that are of a kind which the viewer does not show.
 *
 * Which series a segmentation refers to (Referenced Series Sequence, PS3.3 C.12.1.1 and C.8.20.2) cannot be searched
 * for in every archive, so each one of the study is looked at.
 */
export async function segmentationsOf (studyInstanceUID, seriesInstanceUID) {
  const series = await client.searchForSeries({ studyInstanceUID, queryParams: { Modality: 'SEG' } })
  const found = await Promise.all(series.map(async dataset => {
    const instances = await client.retrieveSeriesMetadata({
      studyInstanceUID, seriesInstanceUID: plain(dataset).SeriesInstanceUID
    })
    return instances.filter(instance => refersTo(instance, seriesInstanceUID))
  }))
  const ofSlide = found.filter(instances => instances.length > 0)
  const shown = ofSlide
    .map(instances => instances.filter(instance => plain(instance).SOPClassUID === SEGMENTATION))
    .filter(instances => instances.length > 0)
    .map(instances => instances.map(instance => new metadata.Segmentation({ metadata: instance })))
    .sort(([a], [b]) => moment(b).localeCompare(moment(a)) || inOrder(versions(b), versions(a)))
  return { segmentations: shown, others: ofSlide.length - shown.length }
}

function refersTo (instance, seriesInstanceUID) {
  const referenced = instance[TAGS.ReferencedSeriesSequence]?.Value ?? []
  return referenced.some(item => plain(item).SeriesInstanceUID === seriesInstanceUID)
}

function moment ({ ContentDate, ContentTime }) {
  return `${ContentDate}${ContentTime}`
}

function inOrder (a, b) {
  return a.localeCompare(b, 'en', { numeric: true })
}

/** Return the versions of the program and of its model, which tell results of one moment apart. */
function versions ({ SoftwareVersions }) {
  return [SoftwareVersions ?? ''].flat().join(' ')
}

function plain (dataset) {
  return Object.fromEntries(
    Object.entries(TAGS).map(([keyword, tag]) => [keyword, dataset[tag]?.Value?.[0] ?? ''])
  )
}
