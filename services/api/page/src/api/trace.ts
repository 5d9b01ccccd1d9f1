// The answers about one trace, and the rows of its timeline, which comes as columns and, if it is large, in parts.

import type { Row } from '../core/tree'
import { getJson, named, query, type Options } from './client'

/** A timeline as columns: a list for each field of a row, all of the same length. */
type Columns = { [Field in Exclude<keyof Row, 'trace_id' | 'hidden'>]: Row[Field][] } & { hidden?: number[] }
export type ColumnTimeline = {
  trace_id: string
  name: string
  started_at: string
  duration_ms: number
  session_id: string | null
  user_id: string | null
  error_count: number
  row_count: number
  total_cost_usd: number | null
  total_tokens: number
  span_count: number
  unpriced_span_count: number
  partly_priced_span_count: number
  columns: Columns
  next_cursor?: string
}
export type Head = Omit<ColumnTimeline, 'columns' | 'next_cursor'>
export type Neighbours = { previous: string | null; next: string | null; position: number | null; total: number }
export type Deleted = { span_count: number; log_aged_out_by: string; log_expires_at: string }

export const traceAt = (id: string): string => `./traces/${named(id)}`
export const spanAt = (traceId: string, spanId: string): string => `${traceAt(traceId)}/spans/${named(spanId)}`
export const timelineAt = (id: string, below?: string, cursor?: string): string =>
  `${traceAt(id)}/timeline${query([['format', 'columns'], ...pair('below', below), ...pair('cursor', cursor)])}`

function pair(name: string, value: string | undefined): [string, string][] {
  return value === undefined ? [] : [[name, value]]
}

/** The rows of *columns*. */
export function rowsOf(columns: Columns): Row[] {
  const { span_id, parent_span_id, name, kind, start_ms, duration_ms, status, model, cost_usd, counted, total_tokens, ttft_ms, caller, score, hidden } = columns
  return span_id.map((id, at) => ({
    span_id: id,
    parent_span_id: parent_span_id[at]!,
    name: name[at]!,
    kind: kind[at]!,
    start_ms: start_ms[at]!,
    duration_ms: duration_ms[at]!,
    status: status[at]!,
    model: model[at]!,
    cost_usd: cost_usd[at]!,
    counted: counted[at]!,
    total_tokens: total_tokens[at]!,
    ttft_ms: ttft_ms[at]!,
    caller: caller[at]!,
    score: score[at]!,
    ...(hidden?.[at] ? { hidden: hidden[at] } : {}),
  }))
}

/** All rows of a trace that its timeline shows at once, or those below a span, and what it says about the whole trace. */
export async function getRows(id: string, below: string | undefined, options: Options): Promise<{ head: Head; rows: Row[] }> {
  const rows: Row[] = []
  let cursor: string | undefined
  for (;;) {
    const { columns, next_cursor, ...head } = await getJson<ColumnTimeline>(timelineAt(id, below, cursor), options)
    for (const row of rowsOf(columns)) rows.push(row)
    if (next_cursor === undefined) return { head, rows }
    cursor = next_cursor
  }
}

/** The most rows of a page of a timeline in rows. */
const PAGE = '5000'

/** All rows of a trace, however many: page by page, because columns leave out the deep levels of a large trace. */
export async function getAllRows(id: string, options: Options): Promise<Row[]> {
  const all: Row[] = []
  let cursor: string | undefined
  for (;;) {
    const path = `${traceAt(id)}/timeline${query([['limit', PAGE], ...pair('cursor', cursor)])}`
    const { rows, next_cursor } = await getJson<{ rows: Row[]; next_cursor?: string }>(path, options)
    for (const row of rows) all.push(row)
    if (next_cursor === undefined) return all
    cursor = next_cursor
  }
}
