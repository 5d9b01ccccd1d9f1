// What the rows of a trace add up to: costs, times, the path that decided how long it took, statistics. Nothing recurses.

import { isLoaded, selfTime, type Row, type Tree } from './tree'

/** A stretch of time, milliseconds since the start of the trace. */
export type Stretch = { from: number; to: number }

/** What lies in a row and below it. Money in nano-dollars, because sums of floats drift. */
export type Below = {
  /** Cost of the rows whose cost counts. */
  nusd: Float64Array
  /** Number of counted rows whose cost is not known. */
  unpriced: Int32Array
  /** Number of rows with status error or timeout below the row, itself excluded. */
  errors: Int32Array
}

export function isFailed(row: Row): boolean {
  return row.status === 'error' || row.status === 'timeout'
}

/** Where a row ends, milliseconds; *now* for one that is open, and for an abandoned one its own start. */
export function endOf(row: Row, now: number): number {
  if (row.duration_ms !== null) return row.start_ms + row.duration_ms
  return row.status === 'abandoned' ? row.start_ms : Math.max(now, row.start_ms)
}

/** The sums of every row, itself included. A cost counts only if `counted` says so: a roll-up repeats what is below it. */
export function sumsBelow(tree: Tree): Below {
  const size = tree.rows.length
  const [nusd, unpriced, errors] = [new Float64Array(size), new Int32Array(size), new Int32Array(size)]
  for (let at = size - 1; at >= 0; at--) {
    const index = tree.order[at]!
    const row = tree.rows[index]!
    if (row.counted) {
      if (row.cost_usd === null) unpriced[index]! += 1
      else nusd[index]! += Math.round(row.cost_usd * 1e9)
    }
    const parent = tree.parent[index]!
    if (parent < 0) continue
    nusd[parent]! += nusd[index]!
    unpriced[parent]! += unpriced[index]!
    errors[parent]! += errors[index]! + (isFailed(row) ? 1 : 0)
  }
  return { nusd, unpriced, errors }
}

/** By how much a row begins before its parent, and ends after it, milliseconds; null = it lies within. */
export function outside(tree: Tree, index: number): { before: number; after: number } | null {
  const parent = tree.parent[index]!
  if (parent < 0) return null
  const [row, above] = [tree.rows[index]!, tree.rows[parent]!]
  const before = Math.max(0, above.start_ms - row.start_ms)
  const isEnded = row.duration_ms !== null && above.duration_ms !== null
  const after = isEnded ? Math.max(0, endOf(row, 0) - endOf(above, 0)) : 0
  // Times are rounded to nanoseconds by the API, and their sums to what a double holds.
  return before > 1e-4 || after > 1e-4 ? { before: before > 1e-4 ? before : 0, after: after > 1e-4 ? after : 0 } : null
}

/**
 * The stretches of rows that decided how long the trace took: row -> its own stretches.
 *
 * From the end of a row backwards: the child that ended last before that point was waited for, and so on until the row
 * began; what lies between was spent by the row itself. A child that ended later than that was not waited for.
 */
export function criticalPath(tree: Tree, now: number): Map<number, Stretch[]> {
  const found = new Map<number, Stretch[]>()
  const waiting: { index: number; until: number }[] = []
  const follow = (index: number, children: readonly number[], from: number, until: number) => {
    const own: Stretch[] = []
    let at = until
    const ended = children
      .map((child) => ({ child, start: tree.rows[child]!.start_ms, end: endOf(tree.rows[child]!, now) }))
      .sort((a, b) => b.end - a.end || b.start - a.start)
    for (const { child, start, end } of ended) {
      if (end > at || end <= from || end <= start) continue
      if (end < at) own.push({ from: end, to: at })
      waiting.push({ index: child, until: end })
      at = Math.max(start, from)
    }
    if (at > from) own.push({ from, to: at })
    if (index >= 0) found.set(index, own.reverse())
  }
  const end = tree.rows.reduce((last, row) => Math.max(last, endOf(row, now)), 0)
  follow(-1, tree.roots, -Infinity, end)
  while (waiting.length) {
    const { index, until } = waiting.pop()!
    follow(index, tree.children[index]!, tree.rows[index]!.start_ms, until)
  }
  return found
}

/**
 * When a row works itself: a row without children all the time, another one before its first child and after its last
 * one. Between its children it may wait for anything.
 */
export function runsOf(tree: Tree, index: number, now: number): Stretch[] {
  const row = tree.rows[index]!
  const [from, to] = [row.start_ms, Math.max(endOf(row, now), row.start_ms)]
  const children = tree.children[index]!
  // What is not loaded may run at any time within its parent.
  if (!children.length || !isLoaded(row)) return [{ from, to }]
  const first = tree.rows[children[0]!]!.start_ms
  const last = children.reduce((latest, child) => Math.max(latest, endOf(tree.rows[child]!, now)), -Infinity)
  const found: Stretch[] = []
  if (first > from) found.push({ from, to: Math.min(first, to) })
  if (last < to) found.push({ from: Math.max(last, from), to })
  return found
}

/** Long stretches, at least *least* milliseconds, in which no row works, by time. */
export function idleOf(tree: Tree, whole: Stretch, now: number, least: number): Stretch[] {
  const runs: Stretch[] = []
  for (const index of tree.order) for (const run of runsOf(tree, index, now)) runs.push(run)
  runs.sort((a, b) => a.from - b.from)
  const idle: Stretch[] = []
  let until = whole.from
  for (const run of [...runs, { from: whole.to, to: whole.to }]) {
    const from = Math.min(run.from, whole.to)
    if (from - until >= least && from > until) idle.push({ from: until, to: from })
    until = Math.max(until, run.to)
  }
  return idle
}

export type ByName = {
  name: string
  kind: string
  count: number
  errors: number
  nusd: number
  unpriced: number
  /** Sum of the self times of the rows that have ended, milliseconds. */
  self: number
  /** The longest row, milliseconds; null = none has ended. */
  longest: number | null
  /** The row to go to: the longest. */
  index: number
}

/** Numbers of each name and kind, in the order of the first row of each. */
export function byName(tree: Tree): ByName[] {
  const found = new Map<string, ByName>()
  for (const index of tree.order) {
    const row = tree.rows[index]!
    const key = `${row.kind}\n${row.name}`
    let group = found.get(key)
    if (!group) {
      group = { name: row.name, kind: row.kind, count: 0, errors: 0, nusd: 0, unpriced: 0, self: 0, longest: null, index }
      found.set(key, group)
    }
    group.count += 1
    if (isFailed(row)) group.errors += 1
    if (row.counted && row.cost_usd === null) group.unpriced += 1
    else if (row.counted) group.nusd += Math.round(row.cost_usd! * 1e9)
    // In whole nanoseconds, as the API has them, so that the order of the rows does not matter.
    group.self += Math.round((selfTime(tree, index) ?? 0) * 1e6)
    if (row.duration_ms !== null && (group.longest === null || row.duration_ms > group.longest)) {
      group.longest = row.duration_ms
      group.index = index
    }
  }
  return [...found.values()].map((group) => ({ ...group, self: group.self / 1e6 }))
}

/** The kinds in the order in which the minimap stacks them; others count as `other`. */
export const STACKED = ['llm', 'embedding', 'retrieval', 'tool', 'other'] as const
export type Busy = { most: number; kinds: Record<(typeof STACKED)[number], Float64Array>; failed: Uint8Array }

/** How many rows work at a time, see `runsOf`, by kind, in each of *bins* equal parts of *whole*; where rows fail. */
export function busyOf(tree: Tree, whole: Stretch, now: number, bins: number): Busy {
  const perKind = (size: number) => Object.fromEntries(STACKED.map((kind) => [kind, new Float64Array(size)])) as Busy['kinds']
  // Bins that a row covers as a whole are counted by the differences at its two ends.
  const [kinds, covered, failed] = [perKind(bins), perKind(bins + 1), new Uint8Array(bins)]
  const length = (whole.to - whole.from) / bins
  const binOf = (ms: number) => (length > 0 ? Math.min(bins - 1, Math.max(0, Math.floor((ms - whole.from) / length))) : 0)
  tree.rows.forEach((row, index) => {
    if (isFailed(row)) failed[binOf(endOf(row, now))] = 1
    const kind = (STACKED as readonly string[]).includes(row.kind) ? (row.kind as (typeof STACKED)[number]) : 'other'
    for (const { from, to } of length > 0 ? runsOf(tree, index, now) : []) {
      const [first, last] = [binOf(from), binOf(to)]
      if (first === last) {
        kinds[kind][first]! += (Math.min(to, whole.to) - from) / length
        continue
      }
      kinds[kind][first]! += first + 1 - (from - whole.from) / length
      kinds[kind][last]! += (Math.min(to, whole.to) - whole.from) / length - last
      covered[kind][first + 1]! += 1
      covered[kind][last]! -= 1
    }
  })
  let most = 0
  const totals = new Float64Array(bins)
  for (const kind of STACKED) {
    let running = 0
    for (let bin = 0; bin < bins; bin++) {
      running += covered[kind][bin]!
      kinds[kind][bin]! += running
      totals[bin]! += kinds[kind][bin]!
      most = Math.max(most, totals[bin]!)
    }
  }
  return { most, kinds, failed }
}
