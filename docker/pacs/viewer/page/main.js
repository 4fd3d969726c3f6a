// The page: the archive's slides, or one slide and what was found in it.
//
// Which slide is kept in the state of the browser's entry for the page, where going back, going on and reloading find it,
// and not in the address: browsers keep addresses in a history of their own. A link with ?study=UID&series=UID works too;
// the address loses both at once, though a browser may have noted the link.

import { levels, segmentationsOf, slides } from './archive.js'
import { openSlide } from './slide.js'

// Of any slide; one of its own, so that the link to the list leads elsewhere.
const ADDRESS = '?slide'

const status = document.getElementById('status')

async function showSlides () {
  const found = await slides()
  const rows = document.querySelector('#slides tbody')
  for (const slide of found) {
    const link = document.createElement('a')
    link.href = `?study=${slide.StudyInstanceUID}&series=${slide.SeriesInstanceUID}`
    link.textContent = slide.SeriesDescription || `Slide ${rows.rows.length + 1}`
    link.addEventListener('click', event => open(event, slide))
    const row = rows.insertRow()
    row.insertCell().append(link)
    row.insertCell().textContent = slide.AccessionNumber
    row.insertCell().textContent = slide.StudyDate.replace(/^(\d{4})(\d{2})(\d{2})$/, '$1-$2-$3')
    row.insertCell().textContent = slide.segmentations
  }
  document.getElementById('slides').hidden = found.length === 0
  status.textContent = found.length === 0 ? 'The archive holds no slides yet.' : ''
}

/** Open a slide in this window without its UIDs in the address; in a new window or tab, the link does. */
function open (event, { StudyInstanceUID: study, SeriesInstanceUID: series }) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) {
    return
  }
  event.preventDefault()
  window.history.pushState({ study, series }, '', ADDRESS)
  window.location.reload()
}

async function showSlide ({ study, series }) {
  const [images, { segmentations, others }] = await Promise.all([levels(study, series), segmentationsOf(study, series)])
  if (images.length === 0) {
    status.textContent = 'The archive holds no such slide.'
    return
  }
  document.getElementById('slide').hidden = false
  const unshown = others + openSlide(images, segmentations, complain)
  if (segmentations.length + others === 0) {
    status.textContent = 'No segmentation of this slide is in the archive yet.'
  } else if (unshown > 0) {
    status.textContent = `${unshown} ${unshown === 1 ? 'segmentation' : 'segmentations'} of this slide cannot be shown.`
  } else {
    status.textContent = ''
  }
}

function complain (error) {
  const refused = [401, 403].includes(error.status)
  status.textContent = refused ? 'The archive asks for a name and a password.' : `This did not work: ${error.message}`
  status.setAttribute('role', 'alert')
}

/** Return the slide that is asked for, or null for the list. */
function asked () {
  const parameters = new URLSearchParams(window.location.search)
  if (parameters.has('study') && parameters.has('series')) {
    const slide = { study: parameters.get('study'), series: parameters.get('series') }
    window.history.replaceState(slide, '', ADDRESS)
  }
  return window.history.state
}

window.addEventListener('popstate', () => window.location.reload())
const slide = asked()
const showing = slide ? showSlide(slide) : showSlides()
showing.catch(complain)
