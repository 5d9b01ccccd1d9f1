import { expect, test } from 'vitest'
import {
  ago, between, fieldOf, instant, isZone, limits, offset, parseField, parseInstant, parseWindow, rangeOf, shifted, shortInstant, tick,
} from '../src/core/time'

const AT = Date.parse('2026-03-15T14:23:01.441Z')

test.each([['1h', 3.6e6], ['90s', 9e4], ['2h30m', 9e6], ['7d', 6.048e8], ['500ms', 500], ['', null], ['1', null], ['h', null], ['0s', null], ['-1h', null], ['1h ', null]])(
  'the window %j is %s ms', (text, ms) => expect(parseWindow(text)).toBe(ms),
)

test.each([
  ['UTC', '2026-03-15 14:23:01.441', 'UTC'],
  ['Asia/Kolkata', '2026-03-15 19:53:01.441', 'UTC+05:30'],
  ['America/New_York', '2026-03-15 10:23:01.441', 'UTC-04:00'],
  ['Pacific/Chatham', '2026-03-16 04:08:01.441', 'UTC+13:45'],
])('in %s it is %s, %s', (zone, text, name) => {
  expect(instant(AT, zone)).toBe(text)
  expect(offset(AT, zone)).toBe(name)
})

test('clocks change in New York at 2:00, and midnight is hour 0', () => {
  const before = Date.parse('2026-03-08T06:59:59Z')
  expect(instant(before, 'America/New_York')).toBe('2026-03-08 01:59:59.000')
  expect(instant(before + 1000, 'America/New_York')).toBe('2026-03-08 03:00:00.000')
  expect([offset(before, 'America/New_York'), offset(before + 1000, 'America/New_York')]).toEqual(['UTC-05:00', 'UTC-04:00'])
  expect(instant(Date.parse('2026-01-01T00:00:00Z'), 'UTC')).toBe('2026-01-01 00:00:00.000')
})

test('a list shows the day of other days, which is the day in the zone', () => {
  expect(shortInstant(AT, AT + 3.6e6, 'UTC')).toBe('14:23:01.441')
  expect(shortInstant(AT, AT + 6 * 3.6e6, 'Asia/Kolkata')).toBe('2026-03-15 19:53:01.441')
})

test('a range is a window, two instants or everything, and nothing else', () => {
  const of = (...pairs: [string, string][]) => rangeOf(new Map(pairs))
  expect(of()).toEqual({ kind: 'all' })
  expect(of(['window', '1h'])).toEqual({ kind: 'window', window: '1h', ms: 3.6e6 })
  expect(of(['from', '2026-03-15T14:00:00Z'], ['to', '2026-03-15T15:00:00Z'])).toEqual({ kind: 'fixed', from: '2026-03-15T14:00:00Z', to: '2026-03-15T15:00:00Z' })
  expect(of(['window', '1h'], ['from', '2026-03-15T14:00:00Z'])).toMatch(/^window: /)
  expect(of(['from', '2026-03-15T14:00:00Z'])).toMatch(/^to: /)
  expect(of(['from', 'yesterday'], ['to', '2026-03-15T15:00:00Z'])).toMatch(/^from: /)
  expect(of(['window', 'x'])).toMatch(/^window: /)
})

test('a window ends now and is open above', () => {
  expect(limits({ kind: 'window', window: '1h', ms: 3.6e6 }, AT)).toEqual({ since: '2026-03-15T13:23:01.441Z' })
  expect(limits({ kind: 'all' }, AT)).toEqual({})
})

test('instants need a zone', () => {
  expect(parseInstant('2026-03-15T14:23:01.441Z')).toBe(AT)
  expect(parseInstant('2026-03-15T19:53:01.441+05:30')).toBe(AT)
  for (const text of ['2026-03-15', '2026-03-15T14:23:01', '2026-13-15T14:23:01Z', '']) expect(parseInstant(text)).toBeNull()
})

test.each([[500, 'now'], [180_000, '3m 0s ago'], [-5000, 'in 5.00 s'], [90 * 6e4, '1h 30m ago']])('%d ms ago is %s', (ms, text) => {
  expect(ago(AT - ms, AT)).toBe(text)
})

test('zones that do not exist are none', () => {
  expect(isZone('Asia/Kolkata')).toBe(true)
  expect(isZone('Mars/Olympus')).toBe(false)
})

test('times of steps and ranges are as short as they can be', () => {
  expect([6e4, 1e3, 500, 8.64e7].map((step) => tick(AT, 'UTC', step))).toEqual(['14:23', '14:23:01', '14:23:01.441', 'Mar 15'])
  expect(tick(AT, 'Asia/Kolkata', 6e4)).toBe('19:53')
  const minute = Date.parse('2026-03-15T14:23:00Z')
  expect(between(minute, minute + 3.6e6, minute, 'UTC')).toBe('14:23 to 15:23')
  expect(between(minute, minute + 3e4, minute, 'UTC')).toBe('14:23:00 to 14:23:30')
  expect(between(minute, minute + 3.6e6, minute + 8.64e7, 'UTC')).toBe('2026-03-15 14:23 to 15:23')
  expect(between(minute, minute + 8.64e7, minute, 'UTC')).toBe('2026-03-15 14:23 to 2026-03-16 14:23')
})

test.each(['UTC', 'Asia/Kolkata', 'America/New_York', 'Pacific/Chatham'])('a field for dates in %s shows an instant and reads it again', (zone) => {
  for (let at = Date.parse('2026-03-07T00:00:00Z'); at < Date.parse('2026-03-09T00:00:00Z'); at += 9.01e5) {
    const second = Math.floor(at / 1e3) * 1e3
    expect(parseField(fieldOf(second, zone), zone)).toBe(second)
  }
})

test('a field reads no time that a change of clocks left out, and takes minutes', () => {
  expect(parseField('2026-03-08T02:30:00', 'America/New_York')).toBeNull()
  expect(parseField('2026-03-08T03:00', 'America/New_York')).toBe(Date.parse('2026-03-08T07:00:00Z'))
  expect([parseField('', 'UTC'), parseField('2026-13-01T00:00', 'UTC')]).toEqual([null, null])
})

test('the range before and after is as long, and nothing comes after now', () => {
  const fixed = { kind: 'fixed', from: '2026-03-15T10:00:00Z', to: '2026-03-15T10:30:00Z' } as const
  expect(shifted(fixed, 1, AT)).toEqual({ from: '2026-03-15T10:30:00.000Z', to: '2026-03-15T11:00:00.000Z' })
  const hour = { kind: 'window', window: '1h', ms: 3.6e6 } as const
  expect(shifted(hour, -1, AT)).toEqual({ from: '2026-03-15T12:23:01.441Z', to: '2026-03-15T13:23:01.441Z' })
  expect([shifted(hour, 1, AT), shifted({ kind: 'all' }, -1, AT)]).toEqual([null, null])
})
