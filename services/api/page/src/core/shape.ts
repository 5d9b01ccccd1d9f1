// From answers of the API to lines of charts. Nothing is added up here: totals and `other` are the API's.

import type { ApiPoint, Leaf, Series } from '../api/metrics'
import { amount, count, ratio, share, type Unit } from './format'
import type { Line, Shown } from './series'
import { parseWindow } from './time'

/** Points of a chart; *pick* takes the number out of the value of a group, *shift* moves them in time, milliseconds. */
export function shownPoints<T>(points: readonly ApiPoint<T>[], pick: (value: T) => number | null, shift = 0): Shown[] {
  return points.map((point) => ({
    at: Date.parse(point.at) + shift,
    value: pick(point.value),
    partial: point.partial ?? false,
    ...(point.unpriced_span_count ? { note: `+ ${count(point.unpriced_span_count)} unpriced` } : {}),
  }))
}

export const itself = (value: number | null): number | null => value

/** The name of the line of all groups that are not shown. No group is called so, because the API escapes nothing in a name. */
export const REST = 'other'

/** The lines of the groups of a series in the API's order, and one of the others together. */
export function linesOf(series: Series): Line[] {
  const groups = groupsOf(series)
  const names = series.order ?? Object.keys(groups)
  const lines = names.flatMap((name) => (groups[name] ? [{ name, points: shownPoints(groups[name], itself) }] : []))
  return series.other ? [...lines, { name: restName(names, series.other.groups), points: shownPoints(series.other.points, itself) }] : lines
}

/** What can be grouped by, besides attributes. */
export const DIMENSIONS = ['model', 'caller', 'provider', 'name', 'user_id', 'session_id', 'kind', 'status']

const GROUPS = 'by_'

/** The groups of an answer, or of its `previous` or `change`. */
export function groupsOf<T>(answer: { [by: `by_${string}`]: Record<string, T> } | undefined): Record<string, T> {
  const found = Object.entries(answer ?? {}).find(([name]) => name.startsWith(GROUPS))
  return (found?.[1] as Record<string, T> | undefined) ?? {}
}

/** How many spans of a group have an unknown cost, which its number leaves out. */
export function unpricedOf(answer: { [by: `unpriced_by_${string}`]: Record<string, { unpriced_span_count: number }> } | undefined, group: string): number {
  const found = Object.entries(answer ?? {}).find(([name]) => name.startsWith('unpriced_by_'))
  return (found?.[1] as Record<string, { unpriced_span_count: number }> | undefined)?.[group]?.unpriced_span_count ?? 0
}

/** A value of a group: without one, "unpriced" where calls are the reason. */
export function groupAmount(value: number | null | undefined, unit: Unit, unpriced: number): string {
  if (!unpriced) return amount(value, unit)
  const calls = `${count(unpriced)} ${unpriced === 1 ? 'call' : 'calls'}`
  return value === null || value === undefined ? `unpriced, ${calls}` : `${amount(value, unit)} + ${count(unpriced)} unpriced`
}

/**
 * What an answer is grouped by, as it is chosen: an attribute is `attr.<key>`, which the answer calls by its key alone.
 *
 * The answer to an earlier choice is shown until the next one comes, so it is not always what is chosen now.
 */
export function groupedBy(answer: object, otherwise: string): string {
  const name = Object.keys(answer).find((each) => each.startsWith(GROUPS))?.slice(GROUPS.length)
  if (name === undefined) return otherwise
  return DIMENSIONS.includes(name) ? name : `attr.${name}`
}

/** "other", unless a group has that very name. */
export function restName(names: readonly string[], groups: number): string {
  return names.includes(REST) ? `${REST} (${count(groups)} more)` : REST
}

/** The length of a step of a series, milliseconds. */
export function stepOf(series: { step: string }): number {
  return parseWindow(series.step) ?? 6e4
}

/** By how far the points before have to be moved to lie below those of now, milliseconds. */
export function shiftOf(now: { from: string }, before: { from: string }): number {
  return Date.parse(now.from) - Date.parse(before.from)
}

/**
 * The points *before*, each at the nearest step of *now*; what has none within half a step is left out.
 *
 * Two ranges seldom begin at the same place within a step, and two lines beside each other would have no common steps.
 */
export function aligned(now: readonly Shown[], before: readonly Shown[], step: number): Shown[] {
  const found: Shown[] = []
  let at = 0
  for (const point of now) {
    while (at + 1 < before.length && Math.abs(before[at + 1]!.at - point.at) <= Math.abs(before[at]!.at - point.at)) at++
    const near = before[at]
    if (near && Math.abs(near.at - point.at) <= step / 2) found.push({ ...near, at: point.at })
  }
  return found
}

/** The first step in which there are spans, Unix milliseconds; null = there is none. */
export function firstSeen(points: readonly ApiPoint<unknown>[]): number | null {
  const found = points.find((point) => point.span_count > 0)
  return found ? Date.parse(found.at) : null
}

export type Better = 'lower' | 'higher' | 'neither'
export type Told = { text: string; mood: 'good' | 'bad' | 'same' }

const WORDS: Partial<Record<Unit, [string, string]>> = {
  milliseconds: ['slower', 'faster'], share: ['higher', 'lower'], score: ['higher', 'lower'], 'usd/call': ['dearer', 'cheaper'],
}

/** A change as its arrow, signed difference and percent; "new" from 0. A share changes by percentage points (pp). */
export function changeText({ absolute, ratio: relative }: Leaf, unit: Unit): string {
  if (absolute === null) return 'no data'
  if (absolute === 0) return 'unchanged'
  const [arrow, plus] = absolute > 0 ? ['▲', '+'] : ['▼', '']
  const size = unit === 'share' ? share(absolute).replace('%', 'pp') : amount(absolute, unit)
  return `${arrow} ${plus}${size} (${relative === null ? 'new' : ratio(relative)})`
}

/** The same with what it means in words, and whether that is good. */
export function told(leaf: Leaf | undefined, unit: Unit, better: Better): Told {
  if (!leaf || leaf.absolute === null) return { text: 'no data to compare with', mood: 'same' }
  const text = changeText(leaf, unit)
  if (leaf.absolute === 0) return { text, mood: 'same' }
  const isMore = leaf.absolute > 0
  const mood = better === 'neither' ? 'same' : isMore === (better === 'higher') ? 'good' : 'bad'
  return { text: leaf.ratio === null ? text : `${text} ${(WORDS[unit] ?? ['more', 'less'])[isMore ? 0 : 1]}`, mood }
}

/** The numbers of a numeric attribute or an eval, of which one at a time is shown. */
export const STATISTICS = ['avg', 'p50', 'p95', 'sum', 'count'] as const

type Json = { [key: string]: unknown }
const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null && !Array.isArray(value)

/** True for metrics whose answers have several statistics instead of one value. */
export function hasStatistics(name: string): boolean {
  return /^(attr|eval)\../.test(name)
}

/** An answer with several statistics as one with the value *statistic* only, so that it reads like that of a number. */
export function only(answer: unknown, statistic: string): unknown {
  if (Array.isArray(answer)) return answer.map((each) => only(each, statistic))
  if (!isObject(answer)) return answer
  const shown = Object.entries(answer).map(([key, value]): [string, unknown] => {
    if (key.startsWith('by_') && isObject(value)) {
      return [key, Object.fromEntries(Object.entries(value).map(([name, each]) => [name, Array.isArray(each) ? only(each, statistic) : one(each, statistic)]))]
    }
    if (key === 'value') return [key, one(value, statistic)]
    return [key, key === 'points' || key === 'previous' || key === 'change' || key === 'other' ? only(value, statistic) : value]
  })
  const whole = Object.fromEntries(shown)
  return !('value' in whole) && statistic in whole ? { ...whole, value: whole[statistic], span_count: whole.count ?? 0 } : whole
}

function one(value: unknown, statistic: string): unknown {
  return isObject(value) && statistic in value ? value[statistic] : value
}
