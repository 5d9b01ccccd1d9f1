// Two traces side by side: spans are matched by the names on the way from the root to them. Nothing here recurses.

import { isFailed, sumsBelow } from './measures'
import type { Row, Tree } from './tree'

/** What one trace has at a path; money in nano-dollars. */
export type Held = { spans: number; failed: number; ms: number | null; nusd: number; unpriced: number }
export type Matched = { name: string; level: number; a: Held | null; b: Held | null }

/**
 * The paths of names of two traces, each after the path above it, with what both have there. Several spans at one path are
 * added up; the cost of a span includes what is below it. Paths that only *b* has come after those of *a* at their level.
 */
export function matched(a: Tree, b: Tree): Matched[] {
  type Node = Matched & { below: Map<string, Node> }
  const root: Node = { name: '', level: -1, a: null, b: null, below: new Map() }
  for (const [side, tree] of [['a', a], ['b', b]] as const) {
    const sums = sumsBelow(tree)
    const places: Node[] = new Array(tree.rows.length)
    for (const index of tree.order) {
      const row = tree.rows[index]!
      const parent = tree.parent[index]!
      const above = parent < 0 ? root : places[parent]!
      let node = above.below.get(row.name)
      if (!node) {
        node = { name: row.name, level: above.level + 1, a: null, b: null, below: new Map() }
        above.below.set(row.name, node)
      }
      places[index] = node
      node[side] = added(node[side], row, sums.nusd[index]!, sums.unpriced[index]!)
    }
  }
  const found: Matched[] = []
  const waiting = [...root.below.values()].reverse()
  while (waiting.length) {
    const { below, ...shown } = waiting.pop()!
    found.push(shown)
    for (const node of [...below.values()].reverse()) waiting.push(node)
  }
  return found
}

function added(held: Held | null, row: Row, nusd: number, unpriced: number): Held {
  const before = held ?? { spans: 0, failed: 0, ms: null, nusd: 0, unpriced: 0 }
  const ms = row.duration_ms === null ? before.ms : (before.ms ?? 0) + row.duration_ms
  return {
    spans: before.spans + 1, failed: before.failed + (isFailed(row) ? 1 : 0), ms: ms === null ? null : Math.round(ms * 1e6) / 1e6,
    nusd: before.nusd + nusd, unpriced: before.unpriced + unpriced,
  }
}
