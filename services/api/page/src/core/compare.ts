// The sides of a comparison: how an address chooses the other one, and two series over the same time.

import type { Params } from './params'

/** With what is compared: an earlier time, another time, or other spans. */
export const EARLIER = ['before', 'yesterday', 'last_week'] as const
export type Choice = (typeof EARLIER)[number] | 'time' | 'values'

/** What an address compares with; a value of a filter on both sides is a comparison of two values. */
export function choiceOf(params: Params): Choice {
  if (params.names().some((name) => name.startsWith('compare.'))) return 'values'
  if (params.has('compare_from') || params.has('compare_to')) return 'time'
  return EARLIER.find((word) => word === params.get('compare')) ?? 'before'
}

/** The filter that differs between the sides: its name and both values; null = none does. */
export function valuesOf(params: Params): { key: string; a: string; b: string } | null {
  const name = params.names().find((each) => each.startsWith('compare.'))
  if (name === undefined) return null
  const key = name.slice('compare.'.length)
  return { key, a: params.get(key) ?? '', b: params.get(name) ?? '' }
}

/** *params* that compare with nothing in particular: without the other side and the filter that it replaced. */
export function withoutSides(params: Params): Params {
  const values = valuesOf(params)
  return params.names().filter((name) => name.startsWith('compare')).reduce(
    (left, name) => left.without(name), values ? params.without(values.key) : params,
  )
}

/** *params* that compare two values of a filter. */
export function withValues(params: Params, key: string, a: string, b: string): Params {
  return withoutSides(params).without(key).with({ [key]: a, [`compare.${key}`]: b })
}

/** *params* with the sides exchanged; null = the time on both sides is chosen by words, which have no other order. */
export function exchanged(params: Params): Params | null {
  const values = valuesOf(params)
  if (values && values.a) return withValues(params, values.key, values.b, values.a)
  const [from, to, otherFrom, otherTo] = ['from', 'to', 'compare_from', 'compare_to'].map((name) => params.get(name))
  if (!from || !to || !otherFrom || !otherTo) return null
  return params.with({ from: otherFrom, to: otherTo, compare_from: from, compare_to: to })
}

export type At = { at: number; value: number | null; partial: boolean }

/**
 * The points of *before* at the places of those of *now*, so that both are seen at once: the first step beside the first
 * one, and so on. Steps that only one side has are left out.
 */
export function overlaid(now: readonly At[], before: readonly At[], shift: number, step: number): At[] {
  const free = new Map(now.map((point, index) => [index, point]))
  return before.flatMap((point) => {
    const wanted = point.at + shift
    let best = -1
    for (const [index, { at }] of free) {
      if (Math.abs(at - wanted) <= step / 2 && (best < 0 || Math.abs(at - wanted) < Math.abs(now[best]!.at - wanted))) best = index
    }
    if (best < 0) return []
    free.delete(best)
    return [{ ...point, at: now[best]!.at }]
  })
}

/** The parameters of the page itself, which the API does not get. */
export const OWN: readonly string[] = ['by', 'metric', 'trace']
