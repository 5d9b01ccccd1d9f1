import { describe, expect, test } from 'vitest'
import { refusedPath, type Log, type PipelineHealth } from '../src/api/health'
import { coverageOf, gapText, verdictOf } from '../src/core/health'
import { Params } from '../src/core/params'

const well: PipelineHealth = {
  status: 'ok', version: '1', uptime_s: 1, span_count: 0, stored_spans: 0, queue_depth: 0, store_behind_s: 0,
  parts: [{ name: 'nats', ok: true, lag_s: null, detail: '' }],
}

test.each([
  [well, 'ok', 'every part works'],
  [{ ...well, status: 'unhealthy', error: 'no ingest answers' } as const, 'bad', 'no ingest answers'],
  [{ ...well, warnings: ['a is behind'] }, 'warning', 'a is behind'],
  [{ ...well, lost: [{ shard: 0, first: 3, last: 9 }] }, 'warning', 'messages were lost'],
  [{ ...well, damaged: ['day-1'], warnings: ['b'] }, 'warning', 'files of the store are damaged; b'],
  [{ ...well, lost: [], damaged: [] }, 'ok', 'every part works'],
  [null, 'unknown', 'not known yet'],
  ['the server cannot be reached', 'unknown', 'the server cannot be reached'],
])('a pipeline is told in one line', (health, level, text) => expect(verdictOf(health)).toEqual({ level, text }))

describe('the log', () => {
  const log: Log = {
    from: '2026-03-15T14:00:00Z', covers_s: 600, bytes: 3 * 2 ** 30, max_bytes: 8 * 2 ** 30, max_age_s: 7 * 86_400,
    bytes_per_s: (8 * 2 ** 30) / 4500, will_cover_s: 4500,
  }
  test('will be shorter than its limit of age if it fills up before', () => {
    const { text, isShort } = coverageOf(log)
    expect(text).toContain('The log holds the last 10m 0s: 3.00 GiB.')
    expect(text).toContain('7d 0h will be 1h 15m at this rate')
    expect(isShort).toBe(true)
  })
  test('will hold all if it grows slowly', () => {
    const { text, isShort } = coverageOf({ ...log, bytes_per_s: 10, will_cover_s: log.max_age_s })
    expect(text).toContain('so it will hold all of the 7d 0h')
    expect(isShort).toBe(false)
  })
  test('has no forecast before its growth was measured', () => {
    expect(coverageOf({ ...log, from: null, covers_s: 0, bytes_per_s: null, will_cover_s: null }).text).toBe(
      'The log is empty. It keeps records for 7d 0h, and at most 8.00 GiB. How fast it grows is known a minute after the start.',
    )
  })
})

test('a gap tells its size, its place and who had not read it', () => {
  expect(gapText({ shard: 2, first: 10, last: 10 })).toBe('1 message of shard 2 (10 to 10), which the store had not read when the log discarded it')
  expect(gapText({ shard: 0, first: 1, last: 5000, service: 'aggregator' })).toBe(
    '5,000 messages of shard 0 (1 to 5000), which the aggregator had not read when the log discarded them',
  )
})

test('the address of the health page says which refused spans are asked for', () => {
  expect(refusedPath(new Params([['reason', 'model'], ['cursor', '1-2'], ['colour', 'red']]))).toBe('./rejected?reason=model&cursor=1-2&limit=20')
  expect(refusedPath(new Params())).toBe('./rejected?limit=20')
})
