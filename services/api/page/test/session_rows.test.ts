import { describe, expect, test } from 'vitest'
import type { GraphNode } from '../src/api/sessions'
import { rowsOf } from '../src/core/session_rows'
import { treeOf } from '../src/core/tree'

const node = (id: string, more: Partial<GraphNode> = {}): GraphNode => ({
  trace_id: 't', id, name: id, type: 'llm', status: 'ok', tokens: { input: 5, output: 2 }, costUSD: 0.1,
  startedAt: '2026-03-15T14:00:00.000Z', duration: 10, ...more,
})
const costs = new Set(['llm', 'tool'])

describe('the rows of a session', () => {
  test('begin at its first span and last as long as its last one, open spans apart', () => {
    const { rows, started, whole } = rowsOf([
      node('b', { startedAt: '2026-03-15T14:00:02.000Z', duration: 500 }),
      node('a'),
      node('c', { startedAt: '2026-03-15T14:00:09.000Z', duration: null, costUSD: null, status: 'pending' }),
    ], costs)
    expect(started).toBe(Date.parse('2026-03-15T14:00:00Z'))
    expect(rows.map((row) => row.start_ms)).toEqual([2000, 0, 9000])
    expect(whole).toBe(9000)
    expect(rows[2]).toMatchObject({ duration_ms: null, total_tokens: null, counted: false })
  })
  test('of no span are none', () => expect(rowsOf([], costs)).toEqual({ rows: [], started: 0, whole: 0 }))
  test('count what sums count: no roll-up, no later telling', () => {
    const { rows } = rowsOf([node('a'), node('b', { type: 'agent' }), node('c', { counted: false })], costs)
    expect(rows.map((row) => row.counted)).toEqual([true, false, false])
  })
  test('have the tokens of the API, whose total may be more than its parts', () => {
    const { rows } = rowsOf([node('a'), node('b', { tokens: { input: 5, output: 2, total: 9 } })], costs)
    expect(rows.map((row) => row.total_tokens)).toEqual([7, 9])
  })
  test('of two traces may have one id, and a parent is looked for in their own trace first', () => {
    const { rows } = rowsOf([
      node('root', { trace_id: 'one' }), node('root', { trace_id: 'two' }),
      node('call', { trace_id: 'one', parentId: 'root' }), node('call', { trace_id: 'two', parentId: 'root' }),
    ], costs)
    expect([...treeOf(rows).parent]).toEqual([-1, -1, 0, 1])
  })
})
