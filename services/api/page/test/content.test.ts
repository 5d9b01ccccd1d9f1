import { expect, test } from 'vitest'
import { isBase64, jsonLines, marked, MOST_TEXT } from '../src/core/content'
import { cut } from '../src/core/format'

const picture = 'iVBORw0KGgo9'.repeat(60)

test('base64 is named and never shown, however it is asked for', () => {
  expect(isBase64(picture)).toBe(true)
  expect(isBase64(`data:image/png;base64,${picture}`)).toBe(true)
  expect(isBase64(`a sentence with ${picture}`)).toBe(false)
  expect(isBase64('x'.repeat(32_768))).toBe(false)
  expect(isBase64('A9z')).toBe(false)
  for (const all of [false, true]) expect(jsonLines({ a: picture }, all, cut).lines).toEqual(['{', `  "a": "base64, ${picture.length} characters"`, '}'])
})

test('long texts are cut until they are asked for', () => {
  const value = { long: 'long text '.repeat(2000), short: 'short' }
  const first = jsonLines(value, false, cut)
  expect(first.isCut).toBe(true)
  expect(first.lines[1]!.length).toBeLessThan(MOST_TEXT + 100)
  const whole = jsonLines(value, true, cut)
  expect(whole.isCut).toBe(false)
  expect(JSON.parse(whole.lines.join('\n'))).toEqual(value)
})

test('marks of removed text are pieces of their own', () => {
  expect(marked('to [EMAIL_REDACTED], [REDACTED]!')).toEqual([
    { text: 'to ', isMark: false }, { text: '[EMAIL_REDACTED]', isMark: true }, { text: ', ', isMark: false },
    { text: '[REDACTED]', isMark: true }, { text: '!', isMark: false },
  ])
  expect(marked('[NOT REDACTED]')).toEqual([{ text: '[NOT REDACTED]', isMark: false }])
  expect(marked('')).toEqual([])
})
