// The answers about the pipeline itself: its health, who sends spans, and what was refused.

import { getJson, query, type Options } from './client'

export type Part = { name: string; ok: boolean; lag_s: number | null; detail: string }
export type Lost = { shard: number; first: number; last: number; service?: string }
export type Calls = {
  repeated_spans: number
  conflicting_spans: number
  conflicting_cost_usd: number
  response_ids_reused: number
  remembered: number
  reach_s: number | null
  readers_that_differ?: string[]
}
export type Log = {
  from: string | null
  covers_s: number
  bytes: number
  max_bytes: number
  max_age_s: number
  bytes_per_s: number | null
  will_cover_s: number | null
}
export type SetAside = {
  total: number
  places: Record<string, number>
  newest: { place: string; which: string; reason: string; count: number; last_at: string }[]
}
export type PipelineHealth = {
  status: 'ok' | 'unhealthy'
  version: string
  uptime_s: number
  span_count: number
  stored_spans: number
  queue_depth: number
  store_behind_s: number
  parts: Part[]
  error?: string
  warnings?: string[]
  services?: Record<string, { processes: number; missing?: string[] }>
  clock?: Record<string, number>
  rejected?: { spans: number; by_reason: Record<string, number>; last_at: string | null; lost?: number }
  log?: Log
  calls?: Calls
  late_spans?: number
  clamped_spans?: number
  behind_s?: number
  disk?: { store_bytes: number; store_max_bytes: number | null; free_bytes: number }
  set_aside?: SetAside
  lost?: Lost[]
  damaged?: string[]
}
export type Reporter = {
  project: string
  source: string
  last_seen: string
  processes: number
  sent: number
  acked: number
  failed: number
  dropped: number
  queue_depth: number
  rejected?: number
}
export type Reporters = { reporters: Reporter[]; count: number; since: string }
export type Refused = {
  at: string
  project: string
  kind: string
  reason: string
  error: string
  batch: string
  index: number
  reporter?: string
  record?: Record<string, unknown>
  size_bytes?: number
  sha256?: string
}
export type RefusedPage = {
  spans: number
  by_reason: Record<string, number>
  last_at: string | null
  other_records?: Record<string, number>
  lost?: number
  rejected: Refused[]
  count: number
  next_cursor: string | null
}

/** The health of the pipeline. An unhealthy one answers 503, with all that it knows. */
export function getHealth(path: string, options: Options): Promise<PipelineHealth> {
  return getJson<PipelineHealth>(path, { ...options, accepted: (said) => said !== null && typeof said === 'object' && 'parts' in said })
}

export const REFUSED_ON_A_PAGE = 20

export function refusedPath(params: { get(name: string): string | undefined }): string {
  const given = ['reason', 'since', 'cursor'].flatMap((name): [string, string][] => {
    const value = params.get(name)
    return value === undefined ? [] : [[name, value]]
  })
  return `./rejected${query([...given, ['limit', String(REFUSED_ON_A_PAGE)]])}`
}
