// The spans of a trace by depth: one lane for each level, whose spans are by start.

import { bar, type Axis } from './layout'
import { endOf, isFailed } from './measures'
import type { Tree } from './tree'

/** The rows of each level, by start. */
export function lanesOf(tree: Tree): number[][] {
  const lanes: number[][] = []
  for (const index of tree.order) (lanes[tree.level[index]!] ??= []).push(index)
  for (const lane of lanes) lane.sort((a, b) => tree.rows[a]!.start_ms - tree.rows[b]!.start_ms || a - b)
  return lanes
}

export type Block = { left: number; width: number; kind: string; failed: boolean; open: boolean; index: number; count: number }

/** The bars of a lane in pixels of *width*. Spans that begin and end within one pixel are one bar: there is no room for more. */
export function blocksOf(tree: Tree, lane: readonly number[], axis: Axis, now: number, width: number): Block[] {
  const blocks: Block[] = []
  for (const index of lane) {
    const row = tree.rows[index]!
    const drawn = bar(row.start_ms, endOf(row, now) - row.start_ms, axis)
    if (!drawn) continue
    const [left, wide] = [drawn.left * width, Math.max(drawn.width * width, 1)]
    const last = blocks.at(-1)
    if (last && wide <= 1.5 && last.width <= 1.5 && Math.floor(left) === Math.floor(last.left)) {
      last.failed ||= isFailed(row)
      last.count += 1
      continue
    }
    blocks.push({ left, width: wide, kind: row.kind, failed: isFailed(row), open: row.duration_ms === null, index, count: 1 })
  }
  return blocks
}

/** The row of a lane at *ms*: the last one that has begun and still runs there, or else the nearest; -1 = it has none. */
export function rowAt(tree: Tree, lane: readonly number[], ms: number, now: number): number {
  let [best, least] = [-1, Infinity]
  for (const index of lane) {
    const row = tree.rows[index]!
    const [from, to] = [row.start_ms, endOf(row, now)]
    const far = ms < from ? from - ms : ms > to ? ms - to : 0
    // Of several that run there, the one that began last lies on top.
    if (far < least || (far === 0 && least === 0)) [best, least] = [index, far]
  }
  return best
}
