// The answers that the page reads; the server's OpenAPI document describes them.

import type { Unit } from '../core/format'
import type { Row } from '../core/tree'

export type About = {
  version: string
  token_needed: boolean
  paths: { metrics: string; prometheus: string; health: string; ingest: string | null }
  kinds: { name: string; counts_as_cost: boolean }[]
  metrics: { name: string; unit: Unit; additive: boolean; better: 'lower' | 'higher' | 'neither'; is_custom: boolean; is_for_rules: boolean }[]
  retention: Retention
}
/** After how long what is deleted, as durations such as 7d; of numbers, 0 = no limit. */
export type Retention = {
  shown_for: string
  log_keeps: string
  max_spans: number
  max_bytes: number
  metrics_for: string
  rejected_for: string
  alerts_for: string
  open_for: string
}
export type ListedTrace = {
  trace_id: string
  name: string
  started_at: string
  ended_at: string
  status: string
  duration_ms: number
  error: string | null
  models: string[]
  caller: string | null
  session_id: string | null
  user_id: string | null
  score: number | null
  attributes?: Record<string, string | null>
} & Sums
/** Sums over spans; a cost of null = no cost is known. */
type Sums = {
  total_cost_usd: number | null
  total_tokens: number
  span_count: number
  unpriced_span_count: number
  partly_priced_span_count: number
}
type CountedTraces = Sums & { trace_count: number; ok_count: number; error_count: number }
export type TraceSeries = CountedTraces & {
  from: string | null
  to: string | null
  step: string
  points: (CountedTraces & { at: string; partial?: boolean })[]
  searched_until?: string
}
export type TracePage = {
  traces: ListedTrace[]
  trace_ids: string[]
  count: number
  total: number | null
  next_cursor: string | null
  searched_until?: string
}
/** One call; an order of a list of them is one of `CALL_ORDERS`. */
export type ListedCall = {
  trace_id: string
  span_id: string
  name: string
  kind: string
  status: string
  error: string | null
  started_at: string
  latency_ms: number
  ttft_ms: number | null
  model: string | null
  caller: string | null
  total_tokens: number
  cost_usd: number | null
  cost_source: string | null
  user_id: string | null
}
export const CALL_ORDERS = ['started', 'latency', 'cost', 'tokens'] as const
export type CallsPage = { calls: ListedCall[]; count: number; total: number; next_cursor: string | null }
export type Timeline = { trace_id: string; started_at: string; duration_ms: number; rows: Row[]; next_cursor?: string }
export type Trace = {
  name: string
  started_at: string
  total_cost_usd: number | null
  total_tokens: number
  span_count: number
  unpriced_span_count: number
}
export type StoredSpan = { [field: string]: unknown } & { span_id: string; attributes?: Record<string, unknown> }
export type Receipt = {
  model: string
  provider: string
  cost_usd: string | null
  counted: boolean
  confidence: string
  reason: string | null
  assumed: string | null
  price: { source: string | null; version: string | null; matched_model: string | null; priced_at: string; tier: number | null;
    matched: string | null; variant: string | null; period: string | null }
  lines: { unit: string; amount: number | string; rate_usd: string | null; per: number | null; cost_usd: string }[]
  rounding: string
  note?: string
}
