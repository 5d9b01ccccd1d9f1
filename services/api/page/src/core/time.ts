// Times and ranges. Addresses and requests are RFC 3339 in UTC; only what is shown is in a zone. No function reads a clock.

import { duration } from './format'

const UNITS: Record<string, number> = { ms: 1, s: 1e3, m: 6e4, h: 3.6e6, d: 8.64e7 }

/** The milliseconds of a window such as `90s`, `2h30m` or `7d`; null = it is none. */
export function parseWindow(text: string): number | null {
  if (!/^(?:\d+(?:\.\d+)?(?:ms|[smhd]))+$/.test(text)) return null
  let total = 0
  for (const [, amount, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ms|[smhd])/g)) total += Number(amount) * (UNITS[unit!] ?? 0)
  return total > 0 ? total : null
}

/** The Unix milliseconds of an instant in RFC 3339; null = it is none. */
export function parseInstant(text: string): number | null {
  if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/i.test(text)) return null
  const ms = Date.parse(text)
  return Number.isNaN(ms) ? null : ms
}

export type Range = { kind: 'all' } | { kind: 'window'; window: string; ms: number } | { kind: 'fixed'; from: string; to: string }

/** Something with parameters, such as those of an address. */
type Given = { get(name: string): string | undefined }

/** The range of an address: a window, or `from` and `to`, never both; without either, *otherwise*. */
export function rangeOf(params: Given, otherwise: Range = { kind: 'all' }): Range | string {
  const [window, from, to] = [params.get('window'), params.get('from'), params.get('to')]
  if (window !== undefined) {
    if (from !== undefined || to !== undefined) return 'window: cannot stand beside from and to'
    const ms = parseWindow(window)
    return ms === null ? `window: '${window}' is no duration such as 90s, 2h30m or 7d` : { kind: 'window', window, ms }
  }
  if (from === undefined && to === undefined) return otherwise
  for (const [name, text] of [['from', from], ['to', to]] as const) {
    if (text === undefined || parseInstant(text) === null) return `${name}: '${text ?? ''}' is not RFC 3339 such as 2026-03-15T14:23:01Z`
  }
  return { kind: 'fixed', from: from!, to: to! }
}

/** The instants between which a range lies at the time *now*; undefined = no limit. */
export function limits(range: Range, now: number): { since?: string; until?: string } {
  if (range.kind === 'all') return {}
  if (range.kind === 'fixed') return { since: range.from, until: range.to }
  return { since: new Date(now - range.ms).toISOString() }
}

/** The range of the same length before (-1) or after (1) a range at the time *now*; null = there is none. */
export function shifted(range: Range, direction: 1 | -1, now: number): { from: string; to: string } | null {
  if (range.kind === 'all') return null
  const [from, to] = range.kind === 'window' ? [now - range.ms, now] : [Date.parse(range.from), Date.parse(range.to)]
  const length = to - from
  if (length <= 0 || (direction > 0 && range.kind === 'window')) return null
  return { from: new Date(from + direction * length).toISOString(), to: new Date(to + direction * length).toISOString() }
}

const formats = new Map<string, Intl.DateTimeFormat>()

function partsIn(ms: number, zone: string): Record<string, string> {
  let format = formats.get(zone)
  if (!format) {
    format = new Intl.DateTimeFormat('en-US', {
      timeZone: zone, hourCycle: 'h23', year: 'numeric', month: '2-digit', day: '2-digit',
      hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3, timeZoneName: 'longOffset',
    })
    formats.set(zone, format)
  }
  return Object.fromEntries(format.formatToParts(ms).map((part) => [part.type, part.value]))
}

/** The offset of a zone at an instant, as `UTC+05:30` or `UTC`. */
export function offset(ms: number, zone: string): string {
  const name = (partsIn(ms, zone).timeZoneName ?? 'GMT').replace('GMT', 'UTC')
  return name === 'UTC+00:00' ? 'UTC' : name
}

/** An instant in a zone: `2026-03-15 14:23:01.441`. */
export function instant(ms: number, zone: string): string {
  const part = partsIn(ms, zone)
  return `${part.year}-${part.month}-${part.day} ${part.hour}:${part.minute}:${part.second}.${part.fractionalSecond}`
}

/** An instant in a zone as a field for dates shows it: `2026-03-15T14:23:01`. */
export function fieldOf(ms: number, zone: string): string {
  return instant(ms, zone).slice(0, 19).replace(' ', 'T')
}

/** The instant that a field for dates stands for in a zone; null = the field is empty or no instant has that time there. */
export function parseField(text: string, zone: string): number | null {
  const withSeconds = /T\d\d:\d\d$/.test(text) ? `${text}:00` : text.slice(0, 19)
  const plainly = parseInstant(`${withSeconds}Z`)
  if (plainly === null) return null
  // The offset depends on the instant, so both that of a day before and that of a day after are tried.
  for (const near of [plainly - 8.64e7, plainly + 8.64e7]) {
    const ms = plainly - (Date.parse(`${fieldOf(near, zone)}Z`) - Math.floor(near / 1e3) * 1e3)
    if (fieldOf(ms, zone) === withSeconds) return ms
  }
  return null
}

/** An instant in a list: without the day if it is the day of *now* in that zone. */
export function shortInstant(ms: number, now: number, zone: string): string {
  const [text, today] = [instant(ms, zone), instant(now, zone)]
  return text.slice(0, 10) === today.slice(0, 10) ? text.slice(11) : text
}

/** How long ago an instant was. */
export function ago(ms: number, now: number): string {
  const difference = now - ms
  if (Math.abs(difference) < 1000) return 'now'
  const text = duration(Math.round(Math.abs(difference) / 1000) * 1000)
  return difference > 0 ? `${text} ago` : `in ${text}`
}

/** Everything about an instant, for hovering: in UTC, in the zone, and how long ago. */
export function allAbout(ms: number, now: number, zone: string): string {
  return `${new Date(ms).toISOString()}\n${instant(ms, zone)} ${offset(ms, zone)}\n${ago(ms, now)}`
}

/** True if *zone* is one that can be shown. */
export function isZone(zone: string): boolean {
  try {
    new Intl.DateTimeFormat('en-US', { timeZone: zone })
    return true
  } catch (error) {
    if (error instanceof RangeError) return false
    throw error
  }
}

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']

/** An instant as short as steps of *step* milliseconds allow: `Mar 15`, `14:23` or `14:23:01`. */
export function tick(ms: number, zone: string, step: number): string {
  const text = instant(ms, zone)
  // The name of the month, because 11-30 reads like a time.
  if (step >= 8.64e7) return `${MONTHS[Number(text.slice(5, 7)) - 1]} ${Number(text.slice(8, 10))}`
  return text.slice(11, step >= 6e4 ? 16 : step >= 1e3 ? 19 : 23)
}

/** Two instants as short as they can be: `21:05 to 22:05`, with the days if they are not on the day of *now*. */
export function between(from: number, to: number, now: number, zone: string): string {
  const step = from % 6e4 || to % 6e4 ? 1e3 : 6e4
  const days = [from, to, now].map((ms) => instant(ms, zone).slice(0, 10))
  const shown = (ms: number, day: string) => `${day} ${tick(ms, zone, step)}`
  if (days[0] === days[1]) return `${days[0] === days[2] ? '' : `${days[0]} `}${tick(from, zone, step)} to ${tick(to, zone, step)}`
  return `${shown(from, days[0]!)} to ${shown(to, days[1]!)}`
}
