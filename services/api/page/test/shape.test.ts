import { expect, test } from 'vitest'
import type { Series } from '../src/api/metrics'
import { metricName } from '../src/core/metric_names'
import { csv } from '../src/core/csv'
import { aligned, firstSeen, groupAmount, groupedBy, groupsOf, hasStatistics, itself, linesOf, only, restName, shiftOf, shownPoints, stepOf, told, unpricedOf } from '../src/core/shape'

const AT = '2026-03-15T14:23:00.000Z'
const point = (value: number | null, more = {}) => ({ at: AT, value, span_count: value === null ? 0 : 1, ...more })
const MS = Date.parse(AT)

test('points keep what the API says: null, partial, and what a sum leaves out', () => {
  expect(shownPoints([point(null, { partial: true }), point(0, { unpriced_span_count: 1229 })], itself, 1000)).toEqual([
    { at: MS + 1000, value: null, partial: true },
    { at: MS + 1000, value: 0, partial: false, note: '+ 1,229 unpriced' },
  ])
})

test('lines stand in the order of the API, whose keys JSON would sort, and the others come last', () => {
  const series = {
    window: '1h', from: AT, to: AT, since: null, metric: 'total_cost', step: '30s', points: [],
    by_model: { '42': [point(1)], b: [point(2)] }, order: ['b', '42', 'gone'], other: { groups: 3, points: [point(9)] },
  } satisfies Series
  expect(linesOf(series).map((line) => [line.name, line.points[0]!.value])).toEqual([['b', 2], ['42', 1], ['other', 9]])
  expect(linesOf({ ...series, other: null })).toHaveLength(2)
  const { by_model: _, ...together } = series
  expect(linesOf(together).map((line) => line.name)).toEqual(['other'])
  expect([groupedBy(series, 'caller'), groupedBy(together, 'caller'), groupedBy({ by_tier: {} }, 'model')]).toEqual(['model', 'caller', 'attr.tier'])
  expect(groupsOf(undefined)).toEqual({})
  expect(restName(['other'], 3)).toBe('other (3 more)')
  expect(stepOf(series)).toBe(30_000)
  expect(shiftOf({ from: '2026-03-15T15:23:00Z' }, { from: AT })).toBe(3.6e6)
})

test('a group was first seen at its first step with spans', () => {
  expect(firstSeen([point(null), { ...point(1), at: '2026-03-15T14:24:00.000Z' }])).toBe(MS + 6e4)
  expect(firstSeen([point(null)])).toBe(null)
})

test('a change is told in words, never as 0 without data', () => {
  expect(told({ absolute: 6.1, ratio: 0.168 }, 'usd', 'lower')).toEqual({ text: '▲ +$6.10 (+16.8 %) more', mood: 'bad' })
  expect(told({ absolute: -1200, ratio: -0.0671 }, 'milliseconds', 'lower')).toEqual({ text: '▼ −1.20 s (−6.71 %) faster', mood: 'good' })
  expect(told({ absolute: 0.0038, ratio: 0.2 }, 'share', 'lower').text).toBe('▲ +0.380 pp (+20.0 %) higher')
  expect(told({ absolute: 1436.5, ratio: 2746.6 }, 'usd', 'lower').text).toBe('▲ +$1,436.50 (× 2,750) more')
  expect(told({ absolute: 9, ratio: 9 }, 'count', 'neither').text).toBe('▲ +9 (+900 %) more')
  expect(told({ absolute: 0.1, ratio: 0.14 }, 'score', 'higher').mood).toBe('good')
  expect(told({ absolute: 5, ratio: null }, 'count', 'neither')).toEqual({ text: '▲ +5 (new)', mood: 'same' })
  expect(told({ absolute: 0, ratio: 0 }, 'usd', 'lower').text).toBe('unchanged')
  expect(told({ absolute: null, ratio: null }, 'usd', 'lower').text).toBe('no data to compare with')
  expect(told(undefined, 'usd', 'lower').text).toBe('no data to compare with')
})

test('a group without a price is unpriced, and not without data', () => {
  const answer = { by_model: { own: null }, unpriced_by_model: { own: { unpriced_span_count: 1229, partly_priced_span_count: 0 } } }
  expect([unpricedOf(answer, 'own'), unpricedOf(answer, 'other'), unpricedOf(undefined, 'own')]).toEqual([1229, 0, 0])
  expect(groupAmount(null, 'usd', 1229)).toBe('unpriced, 1,229 calls')
  expect(groupAmount(null, 'usd', 1)).toBe('unpriced, 1 call')
  expect(groupAmount(2.5, 'usd', 3)).toBe('$2.50 + 3 unpriced')
  expect(groupAmount(null, 'usd', 0)).toBe('no data')
})

test('a table for spreadsheets quotes, and runs no text as a formula', () => {
  expect(csv([['model', 'value'], ['a,"b"', 1.5], ['=1+1', null], ['-x\n', -2]])).toBe('\ufeffmodel,value\r\n"a,""b""",1.5\r\n\'=1+1,\r\n"\'-x\n",-2\r\n')
})

test('of an attribute one statistic is shown as if it were a number', () => {
  const of = (avg: number) => ({ count: 3, sum: 3 * avg, avg, p50: avg, p95: avg })
  const leaf = (absolute: number) => ({ absolute, ratio: 1 })
  const answer = {
    metric: 'attr.size', ...of(2), by_model: { a: of(1) }, from: AT,
    previous: { ...of(4), by_model: { a: of(5) } }, change: { count: leaf(0), avg: leaf(-2), by_model: { a: { avg: leaf(-4) } } },
    other: { groups: 2, value: of(7) },
  }
  expect(only(answer, 'avg')).toMatchObject({
    value: 2, span_count: 3, by_model: { a: 1 }, previous: { value: 4, by_model: { a: 5 } },
    change: { value: leaf(-2), by_model: { a: leaf(-4) } }, other: { groups: 2, value: 7 },
  })
  const series = { points: [{ at: AT, value: of(2), span_count: 3 }, { at: AT, value: null, span_count: 0 }], by_model: { a: [{ at: AT, value: of(1) }] } }
  expect(only(series, 'p95')).toEqual({
    points: [{ at: AT, value: 2, span_count: 3 }, { at: AT, value: null, span_count: 0 }], by_model: { a: [{ at: AT, value: 1 }] },
  })
  expect([hasStatistics('attr.size'), hasStatistics('eval.score'), hasStatistics('attr.'), hasStatistics('total_cost')]).toEqual([true, true, false, false])
})

test('the range before lies below the steps of now, however both begin within a step', () => {
  const points = (...instants: number[]) => instants.map((at, index) => ({ at, value: index, partial: index === 0 }))
  const now = points(0, 50, 110, 170)
  expect(aligned(now, points(0, 50, 110, 170), 60)).toEqual(points(0, 50, 110, 170))
  expect(aligned(now, points(0, 10, 70, 130), 60).map((each) => [each.at, each.value])).toEqual([[0, 0], [50, 2], [110, 3]])
  expect(aligned(now, points(0, 40, 100, 160, 220), 60).map((each) => [each.at, each.value])).toEqual([[0, 0], [50, 1], [110, 2], [170, 3]])
  expect(aligned(now, [], 60)).toEqual([])
})

test('each metric has a name and a meaning, and one of the configuration its own name', () => {
  expect(metricName('latency_p95').meaning).toContain('95 of 100 calls')
  expect(metricName('attr.size')).toEqual({ title: 'attr.size', meaning: 'The numbers in the attribute size of spans of all kinds.' })
  expect(metricName('toString')).toEqual({ title: 'toString', meaning: '' })
})
