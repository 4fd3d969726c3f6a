// The page: without parameters the archive's slides, with ?study=UID&series=UID one slide and what was found in it.

import { levels, segmentationsOf, slides } from './archive.js'
import { openSlide } from './slide.js'

const status = document.getElementById('status')

async function showSlides () {
  const found = await slides()
  const rows = document.querySelector('#slides tbody')
  for (const slide of found) {
    const link = document.createElement('a')
    link.href = `?study=${slide.StudyInstanceUID}&series=${slide.SeriesInstanceUID}`
    link.textContent = slide.SeriesDescription || `Slide ${rows.rows.length + 1}`
    const row = rows.insertRow()
    row.insertCell().append(link)
    row.insertCell().textContent = slide.AccessionNumber
    row.insertCell().textContent = slide.StudyDate.replace(/^(\d{4})(\d{2})(\d{2})$/, '$1-$2-$3')
    row.insertCell().textContent = slide.segmentations
  }
  document.getElementById('slides').hidden = found.length === 0
  status.textContent = found.length === 0 ? 'The archive holds no slides yet.' : ''
}

async function showSlide (study, series) {
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

const asked = new URLSearchParams(window.location.search)
const showing = asked.has('study') && asked.has('series')
  ? showSlide(asked.get('study'), asked.get('series'))
  : showSlides()
showing.catch(complain)
