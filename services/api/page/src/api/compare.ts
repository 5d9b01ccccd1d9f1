// The answers that a comparison reads, and the requests for them.

import type { Pair, Params } from '../core/params'

/** A change: absolute null = no data on a side; ratio null beside a number = it is new. */
export type Leaf = { absolute: number | null; ratio: number | null }
export type Covered = { from: string; to: string; since: string | null; incomplete?: boolean; missing_shards?: number[]; quantile_error?: number }
type Numbers = Record<string, number | null>
type Group<Value> = { span_count: Value; cost: Record<string, Value>; tokens: Record<string, Value>; latency: Record<string, Value>; errors: Record<string, Value>; quality: Record<string, Value> }
/** `GET /metrics` with another side. */
export type BothSides = Covered & Group<number | null> & { previous: Covered & Group<number | null>; change: Group<Leaf> }
/** `GET /metrics/explain`. */
export type Explanation = {
  change: { cost_usd: Leaf }
  parts: { part: 'calls' | 'tokens_per_call' | 'mix' | 'price' | 'other_kinds'; usd: number }[] | null
}
type Other = { groups: number; value: number | null } | null
/** `GET /metrics/{number}` by a dimension or an attribute, with another side. */
export type GroupsOfBoth = Covered & {
  value: number | null
  order: string[]
  other: Other
  previous: Covered & { value: number | null; other: Other } & { [by: `by_${string}`]: Numbers }
  change: { value: Leaf; other: Leaf | null } & { [by: `by_${string}`]: Record<string, Leaf> }
} & { [by: `by_${string}`]: Numbers }
export type Point = { at: string; value: number | null; partial?: boolean }
export type SeriesOfBoth = Covered & { step: string; points: Point[]; previous: Covered & { points: Point[] } }
export type HistogramOfBoth = Covered & {
  count: number; edges: number[]; counts: number[]; zero: number; p50: number | null; p95: number | null
  previous: { count: number; counts: number[]; zero: number; p50: number | null; p95: number | null }
}

/** The parameters of a comparison that are the API's own: times, filters and the other side. */
export function asked(params: Params, own: readonly string[]): Pair[] {
  const pairs = [...params].filter(([name]) => !own.includes(name))
  const isRanged = params.has('window') || params.has('from')
  const isCompared = pairs.some(([name]) => name === 'compare' || name.startsWith('compare_') || name.startsWith('compare.'))
  return [...(isRanged ? [] : [['window', '1h'] as Pair]), ...pairs, ...(isCompared ? [] : [['compare', 'before'] as Pair])]
}
