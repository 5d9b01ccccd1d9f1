// Points of a series over time, and the colours of lines.

export type Point = { at: number; value: number | null; /** Text behind the value, such as `+ 3 unpriced`. */ note?: string }

/** A point and whether its bucket lies only partly within the range: then its value is one "so far". */
export type Shown = Point & { partial: boolean }

/** *points* with a mark on those whose bucket of *step* milliseconds begins before *from* or ends after *to*. */
export function withPartial(points: readonly Point[], step: number, from: number, to: number): Shown[] {
  return points.map((point) => ({ ...point, partial: point.at < from || point.at + step > to }))
}

/** *points* with a point without a value for every bucket that is missing, so that no line is drawn across it. */
export function withGaps(points: readonly Point[], step: number): Point[] {
  const filled: Point[] = []
  for (const point of points) {
    const last = filled[filled.length - 1]
    if (last) for (let at = last.at + step; at < point.at - step / 2; at += step) filled.push({ at, value: null })
    filled.push(point)
  }
  return filled
}

export const HUES = 12

/** The number of the hue of a name, 0 to 11: a model has one colour everywhere. */
export function hue(name: string): number {
  let hash = 0x811c9dc5
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0)!, 0x01000193) >>> 0
  return hash % HUES
}

export type Line = { name: string; points: readonly Shown[] }

/**
 * Lines over the same steps. Step *i* lasts from `starts[i]` to `ends[i]`, Unix milliseconds.
 * `values[line][step]` is null without data; `notes` are texts to stand behind a value.
 */
export type Frame = {
  starts: readonly number[]
  ends: readonly number[]
  partial: readonly boolean[]
  names: readonly string[]
  values: readonly (readonly (number | null)[])[]
  notes: readonly (readonly string[])[]
}

/** The steps of all *lines* side by side, with a step without values wherever one of *step* milliseconds is missing. */
export function frameOf(lines: readonly Line[], step: number, to: number): Frame {
  const known = [...new Set(lines.flatMap((line) => line.points.map((point) => point.at)))].sort((a, b) => a - b)
  const after = (at: number) => (Math.floor(at / step) + 1) * step
  const starts: number[] = []
  for (const at of known) {
    const last = starts[starts.length - 1]
    // Only the first step may begin within one; the others begin at multiples of the step.
    if (last !== undefined) for (let missing = after(last); missing < at - step / 2; missing += step) starts.push(missing)
    starts.push(at)
  }
  const ends = starts.map((at, index) => starts[index + 1] ?? Math.max(at + 1, Math.min(after(at), to)))
  const place = new Map(starts.map((at, index) => [at, index]))
  const partial = starts.map(() => false)
  const values = lines.map(() => starts.map((): number | null => null))
  const notes = lines.map(() => starts.map(() => ''))
  lines.forEach((line, index) => {
    for (const point of line.points) {
      const at = place.get(point.at)!
      values[index]![at] = point.value
      notes[index]![at] = point.note ?? ''
      if (point.partial) partial[at] = true
    }
  })
  return { starts, ends, partial, names: lines.map((line) => line.name), values, notes }
}

/** For each line that is shown, where its layer of a stack begins and ends in each step; null = it has no layer. */
export function stackOf(frame: Frame, hidden: ReadonlySet<string>): ([number, number] | null)[][] {
  const top = frame.starts.map(() => 0)
  return frame.values.map((values, line) =>
    values.map((value, at) => {
      if (value === null || value === 0 || hidden.has(frame.names[line]!)) return null
      const from = top[at]!
      top[at] = from + value
      return [from, top[at]!]
    }),
  )
}

export type Segment = { from: number; to: number; dashed: boolean }

/** The pieces of a line from one step to the next, dashed beside a partial step, and the steps that stand alone. */
export function segments(values: readonly (number | null)[], partial: readonly boolean[]): { pieces: Segment[]; alone: number[] } {
  const pieces: Segment[] = []
  const alone: number[] = []
  values.forEach((value, at) => {
    if (value === null) return
    const [before, after] = [values[at - 1] ?? null, values[at + 1] ?? null]
    if (before === null && after === null) alone.push(at)
    if (after !== null) pieces.push({ from: at, to: at + 1, dashed: !!partial[at] || !!partial[at + 1] })
  })
  return { pieces, alone }
}

/** The highest value that is shown, of one line or of a whole stack, and its step; null = there is none. */
export function highest(frame: Frame, hidden: ReadonlySet<string>, stacked: boolean): { value: number; at: number } | null {
  let found: { value: number; at: number } | null = null
  const offer = (value: number | null, at: number) => {
    if (value !== null && (found === null || value > found.value)) found = { value, at }
  }
  if (stacked) {
    for (const layer of stackOf(frame, hidden)) layer.forEach((part, at) => offer(part && part[1], at))
    if (found) return found
  }
  frame.values.forEach((values, line) => {
    if (!hidden.has(frame.names[line]!)) values.forEach(offer)
  })
  return found
}

/** The lowest value that is shown; null = there is none. */
export function lowest(frame: Frame, hidden: ReadonlySet<string>): number | null {
  const shown = frame.values.filter((_, line) => !hidden.has(frame.names[line]!)).flat()
  return shown.reduce<number | null>((least, value) => (value !== null && (least === null || value < least) ? value : least), null)
}

/** The bounds of the axis of values. It begins at 0 unless *free*; a limit far above all values does not stretch it. */
export function bounds(low: number | null, high: number | null, limits: readonly number[], free: boolean): [number, number] {
  if (high === null || low === null) return [0, 1]
  const near = limits.filter((limit) => limit <= Math.max(high, 0) * 2.5)
  const top = Math.max(high, ...near)
  const bottom = free ? Math.min(low, ...near) : Math.min(0, low)
  const room = (top - bottom || Math.abs(top) || 1) * 0.08
  return [free ? bottom - room : bottom < 0 ? bottom - room : 0, top + room]
}

/** The steps that a selection covers for the most part, as the instants between which they lie; at least one step. */
export function snapped(frame: Frame, from: number, to: number): { from: number; to: number } | null {
  const edges = [...new Set([...frame.starts, ...frame.ends])].sort((a, b) => a - b)
  if (edges.length < 2) return null
  const nearest = (at: number) => edges.reduce((best, edge, index) => (Math.abs(edge - at) < Math.abs(edges[best]! - at) ? index : best), 0)
  const [first, last] = [nearest(Math.min(from, to)), nearest(Math.max(from, to))]
  if (first < last) return { from: edges[first]!, to: edges[last]! }
  const within = frame.starts.findIndex((at, index) => at <= (from + to) / 2 && (from + to) / 2 < frame.ends[index]!)
  const step = within < 0 ? Math.min(first, frame.starts.length - 1) : within
  return { from: frame.starts[step]!, to: frame.ends[step]! }
}

/** The colour of each name: its hue, and whether it has to differ from an earlier name of the same hue. */
export function hues(names: readonly string[]): { hue: number; again: boolean }[] {
  const used = new Set<number>()
  return names.map((name) => {
    const found = { hue: hue(name), again: used.has(hue(name)) }
    used.add(found.hue)
    return found
  })
}

/** How lines are dashed by their order, in pixels, so that colour is never all that tells them apart. */
export const DASHES: readonly (readonly number[])[] = [[], [9, 3], [3, 3], [9, 3, 3, 3], [15, 4], [2, 5]]

/** Positions in ascending order, gathered wherever one is less than *least* after the first of its group: their indices. */
export function clusters(positions: readonly number[], least: number): number[][] {
  const groups: number[][] = []
  positions.forEach((at, index) => {
    const group = groups[groups.length - 1]
    if (group && at - positions[group[0]!]! < least) group.push(index)
    else groups.push([index])
  })
  return groups
}
