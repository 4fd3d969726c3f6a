// Recommended Display CIELab Value (DICOM PS3.3, section C.10.7.1.1) to the sRGB that a screen shows.

// D65. DICOM's profile connection space has D50, but what writes and reads these values (highdicom, dcmqi, dcmjs) takes
// them as relative to D65, and a class has to keep its colour.
const WHITE = [0.950456, 1, 1.088754]

// XYZ to linear sRGB (IEC 61966-2-1).
const LINEAR_SRGB = [
  [3.2404542, -1.5371385, -0.4985314],
  [-0.9692660, 1.8760108, 0.0415560],
  [0.0556434, -0.2040259, 1.0572252]
]

/** Return [red, green, blue], 0 to 255, of the three 16-bit numbers [L*, a*, b*] of a DICOM attribute. */
export function srgb ([lightness, a, b]) {
  const fy = ((lightness / 65535) * 100 + 16) / 116
  const fx = fy + ((a / 65535) * 255 - 128) / 500
  const fz = fy - ((b / 65535) * 255 - 128) / 200
  const xyz = [fx, fy, fz].map((f, i) => WHITE[i] * (f > 6 / 29 ? f ** 3 : 3 * (6 / 29) ** 2 * (f - 4 / 29)))
  return LINEAR_SRGB.map(row => {
    const linear = row.reduce((sum, weight, i) => sum + weight * xyz[i], 0)
    const encoded = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055
    return Math.round(255 * Math.min(1, Math.max(0, encoded)))
  })
}
