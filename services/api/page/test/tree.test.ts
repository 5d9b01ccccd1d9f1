import { expect, test } from 'vitest'
import { closedBelow, nextMatch, opened, pathOf, selfTime, treeOf, visible, type Row } from '../src/core/tree'

function row(span_id: string, parent_span_id: string | null, start_ms = 0, duration_ms: number | null = 10): Row {
  return { span_id, parent_span_id, start_ms, duration_ms, name: span_id, kind: 'llm', status: 'ok', model: null, cost_usd: null, counted: true, total_tokens: null, ttft_ms: null, caller: null, score: null }
}
const names = (rows: readonly Row[], order: readonly number[]) => order.map((index) => rows[index]!.span_id).join(' ')

test('children follow their parent by start, whatever the order of the rows', () => {
  const rows = [row('b', 'r', 5), row('a1', 'a', 2), row('r', null), row('a', 'r', 1), row('a2', 'a', 1)]
  const tree = treeOf(rows)
  expect(names(rows, visible(tree, new Set()))).toBe('r a a2 a1 b')
  expect([...tree.level]).toEqual([1, 2, 0, 1, 2])
  expect(tree.below[2]).toBe(4)
  expect(names(rows, pathOf(tree, 1))).toBe('r a a1')
})

test('orphans are roots with a note', () => {
  const rows = [row('r', null), row('o', 'absent', 3), row('p', 'o', 4)]
  const tree = treeOf(rows)
  expect(tree.note).toEqual(['', 'orphan', ''])
  expect(names(rows, visible(tree, new Set()))).toBe('r o p')
})

test('circles are broken at the row that comes first, and every row is shown once', () => {
  const rows = [row('r', null), row('x', 'z', 2), row('y', 'x', 3), row('z', 'y', 4), row('tail', 'y', 5), row('self', 'self', 6)]
  const tree = treeOf(rows)
  expect(tree.note).toEqual(['', 'circle', '', '', '', 'circle'])
  expect(names(rows, visible(tree, new Set()))).toBe('r x y z tail self')
})

test('of two rows with one id both are shown, and the first has the children', () => {
  const rows = [row('a', null, 0), row('a', null, 1), row('c', 'a', 2)]
  expect(names(rows, visible(treeOf(rows), new Set()))).toBe('a c a')
})

test('a chain of 20,000 spans is a tree', () => {
  const rows = Array.from({ length: 20_000 }, (_, index) => row(`s${index}`, index ? `s${index - 1}` : null, index))
  const tree = treeOf(rows)
  expect(tree.level[19_999]).toBe(19_999)
  expect(tree.below[0]).toBe(19_999)
  expect(visible(tree, new Set()).length).toBe(20_000)
  expect(pathOf(tree, 19_999).length).toBe(20_000)
  const circle = treeOf(rows.map((each, index) => (index ? each : { ...each, parent_span_id: 's19999' })))
  expect(circle.note[0]).toBe('circle')
  expect(visible(circle, new Set()).length).toBe(20_000)
})

test('folded rows hide what is below them, and opening one way shows it', () => {
  const rows = [row('r', null), row('a', 'r', 1), row('a1', 'a', 2), row('b', 'r', 3), row('b1', 'b', 4)]
  const tree = treeOf(rows)
  expect(names(rows, visible(tree, closedBelow(tree, 1)))).toBe('r')
  expect(names(rows, visible(tree, closedBelow(tree, 2)))).toBe('r a b')
  expect(names(rows, visible(tree, opened(tree, closedBelow(tree, 1), 4)))).toBe('r a b b1')
})

test('self time is what no child covers, also if children overlap or stick out', () => {
  const rows = [row('r', null, 0, 100), row('a', 'r', 10, 30), row('b', 'r', 20, 30), row('c', 'r', 90, 50), row('d', 'r', -20, 25), row('e', null, 0, null)]
  const tree = treeOf(rows)
  expect(selfTime(tree, 0)).toBe(100 - 40 - 10 - 5)
  expect(selfTime(tree, 1)).toBe(30)
  expect(selfTime(tree, 5)).toBeNull()
})

test('self time equals a count of the covered milliseconds', () => {
  let seed = 7
  const random = (most: number) => (seed = (seed * 1103515245 + 12345) % 2147483648) % most
  for (let round = 0; round < 200; round++) {
    const rows = [row('r', null, 0, 60), ...Array.from({ length: random(8) }, (_, index) => row(`c${index}`, 'r', random(80) - 10, random(40)))]
    let free = 0
    for (let ms = 0; ms < 60; ms++) free += rows.slice(1).some((each) => each.start_ms <= ms && ms < each.start_ms + each.duration_ms!) ? 0 : 1
    expect(selfTime(treeOf(rows), 0)).toBe(free)
  }
})

test('the next match goes round, and there may be none', () => {
  const order = [4, 2, 7, 1]
  expect(nextMatch(order, 1, 1, (index) => index === 4)).toBe(4)
  expect(nextMatch(order, 0, -1, (index) => index === 7 || index === 1)).toBe(1)
  expect(nextMatch(order, 0, 1, () => false)).toBe(-1)
  expect(nextMatch([], 0, 1, () => true)).toBe(-1)
})

test('rows of several traces have their parents in their own trace first', () => {
  const rows = [
    { ...row('a', null), trace_id: 't1' }, { ...row('a', null, 1), trace_id: 't2' }, { ...row('b', 'a', 2), trace_id: 't2' },
    { ...row('c', 'only', 3), trace_id: 't2' }, { ...row('only', null, 4), trace_id: 't1' },
  ]
  const tree = treeOf(rows)
  expect([...tree.parent]).toEqual([-1, -1, 1, 4, -1])
})

test('spans that are not loaded count below their ancestors', () => {
  const tree = treeOf([row('r', null), { ...row('a', 'r', 1), hidden: 7 }, row('b', 'r', 2)])
  expect([...tree.below]).toEqual([9, 7, 0])
  expect([...tree.hiddenBelow]).toEqual([7, 7, 0])
  expect(tree.hidden).toBe(7)
})
