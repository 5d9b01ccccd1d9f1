// What the answer of `/health` means, in words. Pure.

import type { Log, PipelineHealth } from '../api/health'
import { bytes, duration, exactCount } from './format'

/** What each part does, for those who do not know its name. */
export const PARTS: Readonly<Record<string, string>> = {
  nats: 'the broker, which every span passes',
  ingest: 'takes spans, checks, redacts and prices them',
  aggregator: 'adds spans up to metrics',
  store: 'keeps spans, and answers questions about traces',
  alerter: 'compares metrics with rules, and sends alerts',
  log: 'whether those who read the log keep up with it',
}

export type Verdict = { level: 'ok' | 'warning' | 'bad' | 'unknown'; text: string }

/** The state of the pipeline in one line; null = it is not known yet, text = why it cannot be told. */
export function verdictOf(health: PipelineHealth | string | null): Verdict {
  if (health === null) return { level: 'unknown', text: 'not known yet' }
  if (typeof health === 'string') return { level: 'unknown', text: health }
  if (health.status !== 'ok') return { level: 'bad', text: health.error ?? 'unhealthy' }
  const worries = [
    ...(health.lost?.length ? ['messages were lost'] : []),
    ...(health.damaged?.length ? ['files of the store are damaged'] : []),
    ...(health.set_aside ? ['stored data could not be read'] : []),
    ...(health.warnings ?? []),
  ]
  return worries.length ? { level: 'warning', text: worries.join('; ') } : { level: 'ok', text: 'every part works' }
}

/** A sign for a level, so that its colour is never all that tells it. */
export const SIGNS: Readonly<Record<Verdict['level'], string>> = { ok: '●', warning: '▲', bad: '✕', unknown: '○' }

/** How far back the log reaches, and how far it will once it is full. */
export function coverageOf(log: Log): { text: string; isShort: boolean } {
  const keeps = `It keeps records for ${duration(log.max_age_s * 1000)}, and at most ${bytes(log.max_bytes)}.`
  const holds = log.from === null ? 'The log is empty.' : `The log holds the last ${duration(log.covers_s * 1000)}: ${bytes(log.bytes)}.`
  if (log.bytes_per_s === null || log.will_cover_s === null) {
    return { text: `${holds} ${keeps} How fast it grows is known a minute after the start.`, isShort: false }
  }
  const rate = `It grows by ${bytes(log.bytes_per_s * 60)} a minute`
  const isShort = log.will_cover_s < log.max_age_s
  return isShort
    ? { text: `${holds} ${keeps} ${rate}: ${duration(log.max_age_s * 1000)} will be ${duration(log.will_cover_s * 1000)} at this rate.`, isShort }
    : { text: `${holds} ${keeps} ${rate}, so it will hold all of the ${duration(log.max_age_s * 1000)}.`, isShort }
}

/** How many messages a gap has, and where it is. */
export function gapText(gap: { shard: number; first: number; last: number; service?: string }): string {
  const size = gap.last - gap.first + 1
  return `${exactCount(size)} ${size === 1 ? 'message' : 'messages'} of shard ${gap.shard} (${gap.first} to ${gap.last}), which the ` +
    `${gap.service ?? 'store'} had not read when the log discarded ${size === 1 ? 'it' : 'them'}`
}
