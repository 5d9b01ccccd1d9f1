// The tree of a trace. Nothing here recurses: a chain of 20,000 spans is a trace like any other.

export type Row = {
  span_id: string
  parent_span_id: string | null
  name: string
  kind: string
  start_ms: number
  duration_ms: number | null
  status: string
  model: string | null
  cost_usd: number | null
  /** Whether its cost is part of sums. */
  counted: boolean
  total_tokens: number | null
  ttft_ms: number | null
  caller: string | null
  score: number | null
  /** The trace of the row, if rows of several traces are shown together: a span id is unique within one trace only. */
  trace_id?: string
  /** Number of spans below it that are not among the rows, because they were not asked for. */
  hidden?: number
}

export type Tree = {
  rows: readonly Row[]
  /** Index of the parent of each row; -1 = it is a root. */
  parent: Int32Array
  children: readonly (readonly number[])[]
  roots: readonly number[]
  level: Int32Array
  /** The rows, each after its parent. */
  order: readonly number[]
  /** Number of spans below each row, those that are not loaded included. */
  below: Int32Array
  /** Number of those among them that are not loaded. */
  hiddenBelow: Int32Array
  /** Number of spans that are not loaded, of all. */
  hidden: number
  /** Why a row with a parent is a root; "" = it is none or has no parent. */
  note: readonly ('' | 'orphan' | 'circle')[]
}

/** Whether all that is below a row is among the rows. */
export function isLoaded(row: Row): boolean {
  return !row.hidden
}

/**
 * The tree of *rows*. A parent is looked for in the trace of its child first, then in the others. A row whose parent is not among them is a root with the note "orphan". Of a circle, the row that
 * comes first is a root with the note "circle". Of several rows with one id, the first has the children.
 */
export function treeOf(rows: readonly Row[]): Tree {
  const size = rows.length
  const byId = new Map<string, number>()
  const inTrace = new Map<string, number>()
  rows.forEach((row, index) => {
    if (!byId.has(row.span_id)) byId.set(row.span_id, index)
    if (row.trace_id === undefined) return
    const key = `${row.trace_id}\n${row.span_id}`
    if (!inTrace.has(key)) inTrace.set(key, index)
  })
  const parent = new Int32Array(size).fill(-1)
  const note: ('' | 'orphan' | 'circle')[] = new Array(size).fill('')
  rows.forEach((row, index) => {
    if (row.parent_span_id === null) return
    const own = row.trace_id === undefined ? undefined : inTrace.get(`${row.trace_id}\n${row.parent_span_id}`)
    const found = own ?? byId.get(row.parent_span_id)
    if (found === undefined) note[index] = 'orphan'
    else parent[index] = found
  })
  breakCircles(parent, note)
  const children: number[][] = Array.from({ length: size }, () => [])
  const roots: number[] = []
  const byStart = [...rows.keys()].sort((a, b) => rows[a]!.start_ms - rows[b]!.start_ms || a - b)
  for (const index of byStart) (parent[index]! < 0 ? roots : children[parent[index]!]!).push(index)
  const level = new Int32Array(size)
  const below = Int32Array.from(rows, (row) => row.hidden ?? 0)
  const hiddenBelow = below.slice()
  const hidden = below.reduce((sum, count) => sum + count, 0)
  const order = orderOf(roots, children)
  for (const index of order) if (parent[index]! >= 0) level[index] = level[parent[index]!]! + 1
  for (let at = size - 1; at >= 0; at--) {
    const index = order[at]!
    if (parent[index]! < 0) continue
    below[parent[index]!]! += below[index]! + 1
    hiddenBelow[parent[index]!]! += hiddenBelow[index]!
  }
  return { rows, parent, children, roots, level, order, below, hiddenBelow, hidden, note }
}

function breakCircles(parent: Int32Array, note: ('' | 'orphan' | 'circle')[]): void {
  // 0 = not seen, 1 = on the way that is followed now, 2 = leads to a root.
  const state = new Uint8Array(parent.length)
  for (let start = 0; start < parent.length; start++) {
    const way = []
    let at = start
    while (at >= 0 && state[at] === 0) {
      state[at] = 1
      way.push(at)
      at = parent[at]!
    }
    if (at >= 0 && state[at] === 1) {
      const circle = way.slice(way.indexOf(at))
      const first = circle.reduce((least, index) => Math.min(least, index))
      parent[first] = -1
      note[first] = 'circle'
    }
    for (const index of way) state[index] = 2
  }
}

function orderOf(roots: readonly number[], children: readonly (readonly number[])[]): number[] {
  const order: number[] = []
  const waiting = [...roots].reverse()
  while (waiting.length) {
    const index = waiting.pop()!
    order.push(index)
    const below = children[index]!
    for (let at = below.length - 1; at >= 0; at--) waiting.push(below[at]!)
  }
  return order
}

/** The rows that are shown, from top to bottom, if the rows in *closed* hide what is below them. */
export function visible(tree: Tree, closed: ReadonlySet<number>): number[] {
  const shown: number[] = []
  const waiting = [...tree.roots].reverse()
  while (waiting.length) {
    const index = waiting.pop()!
    shown.push(index)
    if (closed.has(index)) continue
    const below = tree.children[index]!
    for (let at = below.length - 1; at >= 0; at--) waiting.push(below[at]!)
  }
  return shown
}

/** The rows to close so that *depth* levels are shown. */
export function closedBelow(tree: Tree, depth: number): Set<number> {
  const closed = new Set<number>()
  tree.level.forEach((level, index) => {
    if (level >= depth - 1 && tree.children[index]!.length) closed.add(index)
  })
  return closed
}

/** *closed* without the rows that hide row *index*. */
export function opened(tree: Tree, closed: ReadonlySet<number>, index: number): Set<number> {
  const left = new Set(closed)
  for (let at = tree.parent[index]!; at >= 0; at = tree.parent[at]!) left.delete(at)
  return left
}

/** True if a row in *closed* hides row *index*. */
export function isHidden(tree: Tree, closed: ReadonlySet<number>, index: number): boolean {
  for (let at = tree.parent[index]!; at >= 0; at = tree.parent[at]!) if (closed.has(at)) return true
  return false
}

/** The row above *index*, or itself, that is shown if *depth* levels are. */
export function atDepth(tree: Tree, index: number, depth: number): number {
  let at = index
  while (tree.level[at]! >= depth) at = tree.parent[at]!
  return at
}

/** The rows from the root down to row *index*. */
export function pathOf(tree: Tree, index: number): number[] {
  const path = [index]
  for (let at = tree.parent[index]!; at >= 0; at = tree.parent[at]!) path.push(at)
  return path.reverse()
}

/** The milliseconds of a row that none of its children covers; null while it is open. */
export function selfTime(tree: Tree, index: number): number | null {
  const row = tree.rows[index]!
  if (row.duration_ms === null) return null
  const end = row.start_ms + row.duration_ms
  let [covered, until] = [0, row.start_ms]
  for (const child of tree.children[index]!) {
    const { start_ms, duration_ms } = tree.rows[child]!
    const from = Math.max(start_ms, until)
    const to = Math.min(duration_ms === null ? end : start_ms + duration_ms, end)
    if (to > from) covered += to - from
    until = Math.max(until, to)
  }
  return row.duration_ms - covered
}

/** The next row after *from* in *order* for which *matches* holds, going round; -1 = there is none. */
export function nextMatch(order: readonly number[], from: number, step: 1 | -1, matches: (index: number) => boolean): number {
  for (let moved = 1; moved <= order.length; moved++) {
    const at = (((from + step * moved) % order.length) + order.length) % order.length
    if (matches(order[at]!)) return order[at]!
  }
  return -1
}
