import { expect, test } from 'vitest'
import { busyOf, byName, criticalPath, idleOf, outside, STACKED, sumsBelow, type Stretch } from '../src/core/measures'
import { treeOf, type Row } from '../src/core/tree'

function row(span_id: string, parent_span_id: string | null, start_ms = 0, duration_ms: number | null = 10, more: Partial<Row> = {}): Row {
  return {
    span_id, parent_span_id, start_ms, duration_ms, name: span_id, kind: 'llm', status: duration_ms === null ? 'pending' : 'ok', model: null,
    cost_usd: 0, counted: true, total_tokens: null, ttft_ms: null, caller: null, score: null, ...more,
  }
}
let seed = 7
const random = (most: number) => (seed = (seed * 1103515245 + 12345) % 2147483648) % most
/** Rows of a tree whose parents come before them, with whole milliseconds. */
function randomRows(size: number): Row[] {
  return Array.from({ length: size }, (_, index) => row(`s${index}`, index && random(8) ? `s${random(index)}` : null, random(60), random(40), {
    kind: ['llm', 'tool', 'agent', 'embedding'][random(4)]!, status: random(5) ? 'ok' : 'error', counted: random(3) > 0,
    cost_usd: random(6) ? random(1000) / 1e5 : null,
  }))
}
function isBelow(rows: readonly Row[], index: number, above: number): boolean {
  for (let at = index; at >= 0; at = rows.findIndex((each) => each.span_id === rows[at]!.parent_span_id)) if (at === above) return true
  return false
}

test('the cost of a row is the sum of what counts in it and below it, in whole nano-dollars', () => {
  const rows = [row('r', null, 0, 100, { cost_usd: 0.3, counted: false }), row('a', 'r', 0, 1, { cost_usd: 0.1 }), row('b', 'r', 0, 1, { cost_usd: 0.2 })]
  expect(sumsBelow(treeOf(rows)).nusd[0]).toBe(300_000_000)
})

test('costs, unpriced spans and errors below equal a search of all rows', () => {
  for (let round = 0; round < 60; round++) {
    const rows = randomRows(1 + random(20))
    const sums = sumsBelow(treeOf(rows))
    rows.forEach((_, above) => {
      const inside = rows.filter((_each, index) => isBelow(rows, index, above))
      const counted = inside.filter((each) => each.counted)
      expect(sums.nusd[above]).toBe(counted.reduce((sum, each) => sum + Math.round((each.cost_usd ?? 0) * 1e9), 0))
      expect(sums.unpriced[above]).toBe(counted.filter((each) => each.cost_usd === null).length)
      expect(sums.errors[above]).toBe(inside.filter((each) => each.status === 'error' && each !== rows[above]).length)
    })
  }
})

test('a child that begins before its parent or ends after it lies outside', () => {
  const rows = [row('r', null, 10, 50), row('a', 'r', 5, 20), row('b', 'r', 20, 50), row('c', 'r', 10, 50), row('d', 'r', 0, null)]
  const tree = treeOf(rows)
  expect(rows.map((_, index) => outside(tree, index))).toEqual([null, { before: 5, after: 0 }, { before: 0, after: 10 }, null, { before: 10, after: 0 }])
})

test('the critical path is what the end waited for', () => {
  // r waits for a, then for c; b ends while c runs, so nothing waits for it.
  const rows = [row('r', null, 0, 100), row('a', 'r', 10, 30), row('b', 'r', 45, 20), row('c', 'r', 50, 40), row('c1', 'c', 60, 30)]
  const path = criticalPath(treeOf(rows), 0)
  expect([...path.keys()].map((index) => rows[index]!.span_id).sort()).toEqual(['a', 'c', 'c1', 'r'])
  expect(path.get(0)).toEqual([{ from: 0, to: 10 }, { from: 40, to: 50 }, { from: 90, to: 100 }])
  expect(path.get(3)).toEqual([{ from: 50, to: 60 }])
})

test('the stretches of the critical path cover the trace once, whatever the tree', () => {
  for (let round = 0; round < 200; round++) {
    const rows = randomRows(1 + random(15)).map((each, index) => ({ ...each, parent_span_id: index ? (each.parent_span_id ?? 's0') : null }))
    rows[0] = { ...rows[0]!, start_ms: 0, duration_ms: 120 }
    const stretches: Stretch[] = [...criticalPath(treeOf(rows), 0).values()].flat().sort((a, b) => a.from - b.from)
    expect(stretches[0]!.from).toBe(0)
    // Only a child that begins before its parent can put two stretches over each other.
    const overlaps = rows.some((_, index) => index && outside(treeOf(rows), index)?.before)
    if (!overlaps) {
      expect(stretches.reduce((sum, each) => sum + each.to - each.from, 0)).toBeCloseTo(120, 9)
      for (let at = 1; at < stretches.length; at++) expect(stretches[at]!.from).toBe(stretches[at - 1]!.to)
    }
  }
})

/** Whether a row works itself in the millisecond that begins at *ms*. */
function works(rows: readonly Row[], index: number, ms: number): boolean {
  const row = rows[index]!
  if (ms < row.start_ms || ms + 1 > row.start_ms + row.duration_ms!) return false
  const children = rows.filter((each) => each.parent_span_id === row.span_id)
  const begun = children.some((each) => each.start_ms <= ms)
  const goesOn = children.some((each) => each.start_ms + each.duration_ms! > ms)
  return !children.length || !begun || !goesOn
}

test('idle is when no row works: none without children runs, and others are between their children', () => {
  for (let round = 0; round < 100; round++) {
    const rows = [row('r', null, 0, 100), ...Array.from({ length: 1 + random(6) }, (_, index) => row(`c${index}`, 'r', random(100), random(20)))]
    const found = idleOf(treeOf(rows), { from: 0, to: 100 }, 0, 1)
    for (let ms = 0; ms < 100; ms++) {
      const runs = rows.some((_, index) => works(rows, index, ms))
      expect(found.some((each) => each.from <= ms && ms + 1 <= each.to), `${ms}`).toBe(!runs)
    }
  }
  expect(idleOf(treeOf([row('r', null, 0, 100)]), { from: 0, to: 100 }, 0, 1)).toEqual([])
  const open = [row('r', null, 0, 100), row('a', 'r', 10, 10), row('open', 'r', 40, null), row('b', 'r', 80, 20)]
  expect(idleOf(treeOf(open), { from: 0, to: 100 }, 70, 1)).toEqual([{ from: 20, to: 40 }, { from: 70, to: 80 }])
})

test('a chain whose spans each begin while the one above runs is never idle', () => {
  const rows = Array.from({ length: 100 }, (_, index) => row(`s${index}`, index ? `s${index - 1}` : null, index, 10))
  expect(idleOf(treeOf(rows), { from: 0, to: 109 }, 0, 1)).toEqual([])
})

test('the minimap counts what works in each part of the trace', () => {
  for (let round = 0; round < 60; round++) {
    const rows = randomRows(1 + random(12))
    const busy = busyOf(treeOf(rows), { from: 0, to: 100 }, 0, 20)
    for (let bin = 0; bin < 20; bin++) {
      let expected = 0
      for (let ms = bin * 5; ms < bin * 5 + 5; ms++) rows.forEach((_, index) => { expected += works(rows, index, ms) ? 1 / 5 : 0 })
      expect(STACKED.reduce((sum, kind) => sum + busy.kinds[kind][bin]!, 0)).toBeCloseTo(expected, 9)
    }
  }
})

test('statistics by name count each row once', () => {
  const rows = [
    row('r', null, 0, 100, { name: 'agent', kind: 'agent', counted: false, cost_usd: 5 }),
    row('a', 'r', 0, 30, { name: 'answer', cost_usd: 0.1 }), row('b', 'r', 40, 50, { name: 'answer', cost_usd: 0.2, status: 'error' }),
    row('c', 'r', 90, null, { name: 'answer', cost_usd: null }),
  ]
  expect(byName(treeOf(rows))).toEqual([
    { name: 'agent', kind: 'agent', count: 1, errors: 0, nusd: 0, unpriced: 0, self: 10, longest: 100, index: 0 },
    { name: 'answer', kind: 'llm', count: 3, errors: 1, nusd: 300_000_000, unpriced: 1, self: 80, longest: 50, index: 2 },
  ])
})

test('50,000 rows and a chain of 20,000 are summed, searched for their path and drawn', () => {
  const wide = treeOf(Array.from({ length: 50_000 }, (_, index) => row(`s${index}`, index ? `s${Math.floor((index - 1) / 50)}` : null, index, 100)))
  const chain = treeOf(Array.from({ length: 20_000 }, (_, index) => row(`s${index}`, index ? `s${index - 1}` : null, index, 40_000 - 2 * index, { cost_usd: 1e-9 })))
  for (const tree of [wide, chain]) {
    expect(criticalPath(tree, 0).size).toBeGreaterThan(0)
    expect(busyOf(tree, { from: 0, to: 60_000 }, 0, 500).most).toBeGreaterThan(0)
    expect(idleOf(tree, { from: 0, to: 90_000 }, 0, 1).length).toBeGreaterThan(0)
  }
  expect(sumsBelow(chain).nusd[0]).toBe(20_000)
})
