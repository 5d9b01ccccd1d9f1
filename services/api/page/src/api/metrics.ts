// The answers of `GET /metrics` and of the paths below it; the server's OpenAPI document describes them.

import { filtersOf, METRIC_FILTERS } from '../core/filter'
import type { Pair, Params } from '../core/params'
import type { Range } from '../core/time'

/** A change: absolute null = no data on a side; ratio null beside a number = there was nothing before. */
export type Leaf = { absolute: number | null; ratio: number | null }
export type Coverage = {
  window: string | null
  from: string
  to: string
  since: string | null
  incomplete?: boolean
  missing_shards?: number[]
  behind_s?: number
  folded?: string[]
  quantile_error?: number
}
type Unpriced = { unpriced_span_count: number; partly_priced_span_count: number }
type Numbers = Record<string, number | null>
type Leaves = Record<string, Leaf>
export type Groups = {
  span_count: number
  cost: { total_usd: number | null; per_call_usd: number | null; unpriced_span_count: number; partly_priced_span_count: number }
  tokens: Numbers
  latency: Numbers
  errors: Numbers
  quality: Numbers
}
export type Everything = Coverage & Groups & {
  previous?: Coverage & Groups
  change?: { span_count: Leaf; cost: Leaves & { by_model: Leaves }; tokens: Leaves; latency: Leaves; errors: Leaves; quality: Leaves }
}

export type ApiPoint<T = number | null> = {
  at: string
  value: T
  span_count: number
  partial?: boolean
  unpriced_span_count?: number
  partly_priced_span_count?: number
}
/** A series; lines of groups are in `by_<key>`. */
export type Series<T = number | null> = Coverage & {
  metric: string
  step: string
  points: ApiPoint<T>[]
  order?: string[]
  other?: { groups: number; points: ApiPoint<T>[] } | null
  previous?: Coverage & { points: ApiPoint<T>[] }
  [by: `by_${string}`]: Record<string, ApiPoint<T>[]>
}

/** A number; those of groups are in `by_<key>`. */
export type NumberAnswer = Coverage & {
  metric: string
  value: number | null
  span_count: number
  unpriced_span_count?: number
  partly_priced_span_count?: number
  order?: string[]
  other?: { groups: number; value: number | null } | null
  previous?: Coverage & { value: number | null; span_count: number; other?: { groups: number; value: number | null } | null; [by: `by_${string}`]: Numbers; [by: `unpriced_by_${string}`]: Record<string, Unpriced> }
  change?: { value: Leaf; span_count: Leaf; other?: Leaf; [by: `by_${string}`]: Leaves }
  [by: `by_${string}`]: Numbers
  [by: `unpriced_by_${string}`]: Record<string, Unpriced>
}

export type HistogramAnswer = Coverage & {
  metric: string
  unit: string
  count: number
  edges: number[]
  counts: number[]
  zero: number
  p50: number | null
  p95: number | null
  p99: number | null
  previous?: { count: number; counts: number[]; zero: number; from: string; to: string }
}

/** The parameters of a request for numbers: a range, the filters among *params*, and *more*. */
export function metricParams(range: Range, params: Params, more: Readonly<Record<string, string | null>> = {}): Pair[] {
  const times: Pair[] = range.kind === 'window' ? [['window', range.window]] : range.kind === 'fixed' ? [['from', range.from], ['to', range.to]] : []
  return [...times, ...filtersOf(params, METRIC_FILTERS), ...Object.entries(more).filter((pair): pair is [string, string] => pair[1] !== null)]
}
