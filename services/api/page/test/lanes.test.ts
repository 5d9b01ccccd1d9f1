import { expect, test } from 'vitest'
import { blocksOf, lanesOf, rowAt } from '../src/core/lanes'
import { layout } from '../src/core/layout'
import { treeOf, type Row } from '../src/core/tree'

function row(span_id: string, parent_span_id: string | null, start_ms: number, duration_ms: number, status = 'ok'): Row {
  return {
    span_id, parent_span_id, start_ms, duration_ms, name: span_id, kind: 'llm', status, model: null, cost_usd: null, counted: true,
    total_tokens: null, ttft_ms: null, caller: null, score: null,
  }
}

test('a lane holds the rows of one level by start, and every row is in one lane', () => {
  const tree = treeOf([row('r', null, 0, 100), row('b', 'r', 50, 10), row('a', 'r', 10, 10), row('a1', 'a', 12, 2), row('o', 'absent', 5, 1)])
  expect(lanesOf(tree).map((lane) => lane.map((index) => tree.rows[index]!.span_id))).toEqual([['r', 'o'], ['a', 'b'], ['a1']])
})

test('rows within one pixel are one bar, which says that one of them failed', () => {
  const rows = [row('r', null, 0, 1000), ...Array.from({ length: 5000 }, (_, index) => row(`c${index}`, 'r', index / 5, 0.1, index === 2500 ? 'error' : 'ok'))]
  const tree = treeOf(rows)
  const blocks = blocksOf(tree, lanesOf(tree)[1]!, layout({ from: 0, to: 1000 }, [], 5), 0, 400)
  expect(blocks.length).toBeLessThanOrEqual(801)
  expect(blocks.reduce((sum, block) => sum + block.count, 0)).toBe(5000)
  expect(blocks.filter((block) => block.failed).length).toBe(1)
})

test('the row under the pointer is the one that runs there, on top, or else the nearest', () => {
  const tree = treeOf([row('r', null, 0, 100), row('a', 'r', 10, 30), row('b', 'r', 20, 10), row('c', 'r', 60, 10)])
  const lane = lanesOf(tree)[1]!
  const at = (ms: number) => tree.rows[rowAt(tree, lane, ms, 0)]?.span_id
  expect([at(0), at(15), at(25), at(35), at(45), at(58), at(99)]).toEqual(['a', 'a', 'b', 'a', 'a', 'c', 'c'])
  expect(rowAt(tree, [], 5, 0)).toBe(-1)
})
