// Where things are drawn: which rows are in view, and where a span's bar is on the axis. Pure, in pixels and milliseconds.

export type View = { from: number; to: number }

/** Rows rendered above and below those in view. */
export const SPARE_ROWS = 8

/** The rows to render, from *first* up to and without *end*: those in view and a few more on both sides. */
export function rowsInView(scrollTop: number, height: number, rowHeight: number, rows: number): { first: number; end: number } {
  const begin = Math.floor(Math.max(0, scrollTop) / rowHeight)
  const seen = Math.ceil(height / rowHeight) + 1
  const end = Math.min(rows, begin + seen + SPARE_ROWS - 1)
  return { first: Math.max(0, Math.min(begin, rows) - SPARE_ROWS + 1), end }
}

/** The scroll position at which row *index* is in view, moved no further than needed. */
export function scrolledTo(index: number, scrollTop: number, height: number, rowHeight: number): number {
  const top = index * rowHeight
  if (top < scrollTop) return top
  return top + rowHeight > scrollTop + height ? top + rowHeight - height : scrollTop
}

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1.5e4, 3e4, 6e4, 1.2e5, 3e5, 6e5, 9e5, 1.8e6, 3.6e6,
  7.2e6, 1.08e7, 2.16e7, 4.32e7, 8.64e7]

/** The ticks of an axis, milliseconds: round ones, at most *most* of them. */
export function ticks(view: View, most: number): number[] {
  const length = view.to - view.from
  if (!(length > 0) || most < 1) return []
  let step = STEPS.find((size) => length / size <= most) ?? 8.64e7 * Math.ceil(length / 8.64e7 / most)
  while (length / (step / 10) <= most) step /= 10
  const found = []
  for (let at = Math.ceil(view.from / step); at * step <= view.to && found.length <= most; at++) found.push(at * step)
  return found
}

/** A view made *factor* times as long around *at*, kept within *whole*. */
export function zoomed(view: View, factor: number, at: number, whole: View): View {
  const all = whole.to - whole.from
  const length = Math.min(all, Math.max((view.to - view.from) * factor, all / 1e6))
  const before = view.to > view.from ? (at - view.from) / (view.to - view.from) : 0.5
  const from = Math.min(Math.max(at - before * length, whole.from), whole.to - length)
  return { from, to: from + length }
}

/** Part of the axis that a compressed stretch takes, and the most that all of them take together. */
const GAP_PART = 0.02
const MOST_GAPS = 0.5

/** Where milliseconds are on the axis: `place` gives a part of it, 0 to 1 within the view, and `at` turns that back. */
export type Axis = {
  view: View
  /** The compressed stretches in the view. */
  gaps: readonly View[]
  ticks: readonly number[]
  place: (ms: number) => number
  at: (part: number) => number
}

/**
 * The axis of *view* with at most *most* ticks. *gaps*, by time and apart from each other, are compressed: each takes the
 * same small part of the axis, and the rest is in proportion.
 */
export function layout(view: View, gaps: readonly View[], most: number): Axis {
  const length = view.to - view.from
  if (!(length > 0)) return { view, gaps: [], ticks: [], place: () => 0, at: () => view.from }
  const inside = gaps
    .map((gap) => ({ from: Math.max(gap.from, view.from), to: Math.min(gap.to, view.to) }))
    .filter((gap) => gap.to - gap.from > GAP_PART * length && gap.to - gap.from < length)
  const empty = inside.reduce((sum, gap) => sum + gap.to - gap.from, 0)
  const gapPart = Math.min(GAP_PART, MOST_GAPS / Math.max(inside.length, 1))
  const rest = 1 - gapPart * inside.length
  const busy = length - empty
  // A part of the axis for each stretch: [begin in ms, begin as a part, parts for each ms].
  const pieces: { ms: number; part: number; scale: number }[] = []
  let [ms, part] = [view.from, 0]
  for (const gap of inside) {
    const scale = rest / busy
    pieces.push({ ms, part, scale })
    part += (gap.from - ms) * scale
    pieces.push({ ms: gap.from, part, scale: gapPart / (gap.to - gap.from) })
    part += gapPart
    ms = gap.to
  }
  pieces.push({ ms, part, scale: busy > 0 ? rest / busy : 1 / length })
  const pieceAt = (value: number, key: 'ms' | 'part') => {
    let [low, high] = [0, pieces.length - 1]
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (pieces[middle]![key] <= value) low = middle
      else high = middle - 1
    }
    return pieces[low]!
  }
  const place = (at: number) => {
    const piece = pieceAt(at, 'ms')
    return piece.part + (at - piece.ms) * piece.scale
  }
  const at = (where: number) => {
    const piece = pieceAt(where, 'part')
    return piece.ms + (where - piece.part) / piece.scale
  }
  const inGap = (tick: number) => inside.some((gap) => tick > gap.from && tick < gap.to)
  const shown: number[] = []
  for (const tick of ticks(view, most)) {
    const last = shown.at(-1)
    if (!inGap(tick) && (last === undefined || place(tick) - place(last) >= 0.6 / most)) shown.push(tick)
  }
  return { view, gaps: inside, ticks: shown, place, at }
}

/** The bar of a span as parts of the axis, 0 to 1; null = it lies outside of the view. */
export function bar(start: number, duration: number, axis: Axis): { left: number; width: number } | null {
  if (!(axis.view.to > axis.view.from)) return { left: 0, width: 1 }
  const [left, right] = [axis.place(start), axis.place(start + duration)]
  if (right < 0 || left > 1) return null
  const begin = Math.max(0, left)
  return { left: begin, width: Math.min(1, right) - begin }
}

/** The stretch between two points of the axis, in their order; no shorter than a millionth of *whole*. */
export function between(axis: Axis, one: number, other: number, whole: View): View {
  const [from, to] = [axis.at(Math.max(0, Math.min(one, other))), axis.at(Math.min(1, Math.max(one, other)))]
  const least = (whole.to - whole.from) / 1e6
  return to - from >= least ? { from, to } : zoomed({ from: whole.from, to: whole.to }, least / (whole.to - whole.from), from, whole)
}

/** *view* moved by a part of its length, kept within *whole*. */
export function moved(view: View, part: number, whole: View): View {
  const length = view.to - view.from
  const from = Math.min(Math.max(view.from + part * length, whole.from), whole.to - length)
  return { from, to: from + length }
}
