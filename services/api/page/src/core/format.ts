// How numbers and foreign text are shown, everywhere. No other file rounds.

const grouped = new Intl.NumberFormat('en-US')
const cents = new Intl.NumberFormat('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 })
export const NONE = '–'

function sign(value: number): string {
  return value < 0 ? '−' : ''
}

/** US dollars: three significant digits below one dollar, cents above, and never $0 for what is not 0. */
export function money(usd: number | null | undefined): string {
  if (usd === undefined) return NONE
  if (usd === null) return 'unpriced'
  const amount = Math.abs(usd)
  if (amount === 0) return '$0'
  const rounded = Number(amount.toPrecision(3))
  if (rounded >= 1) return `${sign(usd)}$${cents.format(amount)}`
  const decimals = 2 - Math.floor(Math.log10(rounded))
  const [whole, fraction = ''] = amount.toFixed(Math.min(decimals, 100)).split('.')
  return `${sign(usd)}$${whole}.${fraction.replace(/0+$/, '').padEnd(2, '0')}`
}

/** US dollars with all nine digits, for hovering. */
export function exactMoney(usd: number | null | undefined): string {
  return usd === null || usd === undefined ? money(usd) : `${sign(usd)}$${Math.abs(usd).toFixed(9)}`
}

/** A sum of money, with the number of spans that it leaves out. */
export function sum(usd: number | null, unpriced: number): string {
  if (unpriced === 0) return money(usd)
  return usd === null ? `${count(unpriced)} unpriced` : `${money(usd)} + ${count(unpriced)} unpriced`
}

/** Milliseconds: three digits and a unit, which is chosen after rounding; two units from a minute on. */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return NONE
  const amount = Math.abs(ms)
  const before = sign(ms)
  // Below half a nanosecond is what subtracting leaves over.
  if (amount < 5e-7) return '0 ms'
  const micros = Number((amount * 1e3).toPrecision(3))
  if (micros < 1000) return `${before}${micros} µs`
  const millis = Number(amount.toPrecision(3))
  if (millis < 1000) return `${before}${millis} ms`
  if (Number((amount / 1e3).toPrecision(3)) < 60) return `${before}${(amount / 1e3).toPrecision(3)} s`
  const seconds = Math.round(amount / 1e3)
  if (seconds < 3600) return `${before}${Math.floor(seconds / 60)}m ${seconds % 60}s`
  const minutes = Math.round(amount / 6e4)
  if (minutes < 1440) return `${before}${Math.floor(minutes / 60)}h ${minutes % 60}m`
  const hours = Math.round(amount / 3.6e6)
  return `${before}${grouped.format(Math.floor(hours / 24))}d ${hours % 24}h`
}

/** A number of tokens or things: all digits up to 9,999, then three of them and K, M or B. */
export function count(n: number | null | undefined): string {
  if (n === null || n === undefined) return NONE
  const amount = Math.abs(n)
  if (amount < 10_000) return `${sign(n)}${grouped.format(amount)}`
  for (const [size, unit] of [[1e3, 'K'], [1e6, 'M']] as const) {
    if (Number((amount / size).toPrecision(3)) < 1000) return `${sign(n)}${(amount / size).toPrecision(3)} ${unit}`
  }
  const billions = Number((amount / 1e9).toPrecision(3))
  return `${sign(n)}${billions < 1000 ? (amount / 1e9).toPrecision(3) : grouped.format(billions)} B`
}

/** A number of bytes: three digits and a unit, of which each is 1,024 of the one before. */
export function bytes(n: number | null | undefined): string {
  if (n === null || n === undefined) return NONE
  let [amount, unit] = [Math.abs(n), 0]
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  // The unit is chosen after rounding, as that of durations.
  while (unit < units.length - 1 && (unit ? Number(amount.toPrecision(3)) >= 1000 : amount >= 1024)) [amount, unit] = [amount / 1024, unit + 1]
  const shown = unit === 0 ? grouped.format(Math.round(amount)) : amount < 999.5 ? amount.toPrecision(3) : grouped.format(Math.round(amount))
  return `${sign(n)}${shown} ${units[unit]}`
}

/** A number with all its digits, for hovering. */
export function exactCount(n: number | null | undefined): string {
  return n === null || n === undefined ? NONE : grouped.format(n)
}

/** A part of one as percent. */
export function share(part: number | null | undefined): string {
  if (part === null || part === undefined) return NONE
  const percent = Math.abs(part) * 100
  if (percent === 0) return '0 %'
  const rounded = Number(percent.toPrecision(3))
  if (rounded >= 100) return `${sign(part)}${grouped.format(rounded)} %`
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(rounded)))
  return `${sign(part)}${percent.toFixed(Math.min(decimals, 100))} %`
}

/** The change of an amount as a part of what it was: in percent, and from ten times of it on, how many times as much it is now. */
export function ratio(change: number): string {
  // Thousands of percent are hard to read.
  if (change >= 10) return `× ${count(Number((change + 1).toPrecision(3)))}`
  return `${change > 0 ? '+' : ''}${share(change)}`
}

/** A score between 0 and 1. */
export function score(value: number | null | undefined): string {
  return value === null || value === undefined ? NONE : `${sign(value)}${Math.abs(value).toFixed(3)}`
}

/** A score with all the digits that are stored. */
export function exactScore(value: number): string {
  return String(value)
}

/** How a number changed: its arrow, signed difference and percent; "new" from 0, "no data" without one of both. */
export function change(
  now: number | null,
  before: number | null,
  shown: (value: number) => string,
): string {
  if (now === null || before === null) return 'no data'
  const difference = now - before
  if (difference === 0) return 'unchanged'
  const [arrow, plus] = difference > 0 ? ['▲', '+'] : ['▼', '']
  if (before === 0) return `${arrow} ${plus}${shown(difference)} (new)`
  const percent = share(difference / Math.abs(before))
  return `${arrow} ${plus}${shown(difference)} (${plus}${percent})`
}

/** What a quantile may be off by, as text to stand beside it; "" = it is exact. */
export function quantileError(error: number | null | undefined): string {
  return error ? `±${share(error)}` : ''
}

// Zero-width joiners stay, because emoji are made with them.
const hidden =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g

/**
 * Foreign text in which nothing is hidden: control characters, those that turn the direction of writing, and halves of
 * characters are written as escapes, or a name could rewrite the row that it stands in.
 */
export function plain(text: string, lines = false): string {
  return text.replace(hidden, (letter) =>
    lines && (letter === '\n' || letter === '\t') ? letter : `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

/** The beginning of a text, with the number of characters that are left out. */
export function cut(text: string, most: number): string {
  return text.length <= most ? text : `${text.slice(0, most)}… ${exactCount(text.length - most)} more characters`
}

/** Units of `GET /page.json`. */
export type Unit = 'usd' | 'usd/call' | 'tokens' | 'spans' | 'milliseconds' | 'share' | 'score' | 'count' | 'any'

/** A value in its unit; null reads "no data", never 0. */
export function amount(value: number | null | undefined, unit: Unit): string {
  if (value === null || value === undefined) return 'no data'
  switch (unit) {
    case 'usd': return money(value)
    case 'usd/call': return money(value)
    case 'milliseconds': return duration(value)
    case 'share': return share(value)
    case 'score': return score(value)
    case 'any': return number(value)
    default: return Number.isInteger(value) ? count(value) : number(value)
  }
}

/** A number of no known unit: four significant digits, grouped. */
export function number(value: number): string {
  const size = Math.abs(value)
  if (size >= 1e4) return count(value)
  if (size !== 0 && size < 1e-4) return `${sign(value)}${size.toExponential(3)}`
  return `${sign(value)}${new Intl.NumberFormat('en-US', { maximumSignificantDigits: 4 }).format(size)}`
}

/** All digits of a value, for hovering. */
export function exactAmount(value: number | null | undefined, unit: Unit): string {
  if (value === null || value === undefined) return 'no data'
  if (unit === 'usd' || unit === 'usd/call') return exactMoney(value)
  if (unit === 'milliseconds') return `${grouped.format(value)} ms`
  return new Intl.NumberFormat('en-US', { maximumFractionDigits: 9 }).format(value)
}

/** What a value counts, to stand behind it; "" = the unit is written in the value itself. */
export function noun(unit: Unit): string {
  return { 'usd/call': ' a call', tokens: ' tokens', spans: ' spans' }[unit as string] ?? ''
}
