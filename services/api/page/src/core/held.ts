// A list that is asked for again and again while it is read: rows that are there are updated where they are, and no other
// row moves them. Pure.

export type Held<T> = {
  rows: readonly T[]
  /** Number of rows of the newest answer that are not shown, because they would move the others. */
  news: number
}

/** The rows of *before* as *fresh* has them now, in the order of *before*; without it, those of *fresh*. */
export function held<T>(before: readonly T[] | null, fresh: readonly T[], id: (row: T) => string): Held<T> {
  if (!before?.length) return { rows: fresh, news: 0 }
  const newest = new Map(fresh.map((row) => [id(row), row]))
  const rows = before.map((row) => newest.get(id(row)) ?? row)
  const shown = new Set(before.map(id))
  return { rows, news: fresh.filter((row) => !shown.has(id(row))).length }
}
