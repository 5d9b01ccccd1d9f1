// Which key does what. `event.key` is what the keyboard layout types, so every layout works.

/** What a page has: a trace with its tree of spans, a list of rows, the Overview, or none of these. */
export type Context = 'page' | 'overview' | 'list' | 'calls' | 'traces' | 'trace'
const PLACES = { o: 'overview', t: 'traces', c: 'compare', s: 'sessions', a: 'alerts', h: 'health' } as const
export type Place = (typeof PLACES)[keyof typeof PLACES]
export type Action =
  | 'help' | `go:${Place}` | 'filter' | 'range' | 'refresh' | 'live' | 'copy' | 'close' | 'older' | 'newer' | 'undoZoom'
  | 'down' | 'up' | 'open' | 'first' | 'last' | 'pageDown' | 'pageUp'
  | 'right' | 'left' | 'foldAll' | 'unfoldAll' | 'nextError' | 'previousError' | 'dearest' | 'slowest'
  | 'choose' | 'filterCell'
  | 'zoom' | 'zoomIn' | 'zoomOut' | 'whole' | 'earlier' | 'later' | 'critical' | 'byDepth' | 'nextHit' | 'previousHit' | `depth:${number}`

const EVERYWHERE: Record<string, [Action, string]> = {
  '?': ['help', 'this list'],
  '/': ['filter', 'filter, or find in the trace'],
  t: ['range', 'range'],
  r: ['refresh', 'refresh'],
  z: ['undoZoom', 'undo the last zoom of the range'],
  y: ['copy', 'copy the link'],
  Escape: ['close', 'close the topmost'],
}
const ROWS: Record<string, [Action, string]> = {
  j: ['down', 'next row'],
  ArrowDown: ['down', 'next row'],
  k: ['up', 'previous row'],
  ArrowUp: ['up', 'previous row'],
  Enter: ['open', 'open'],
  Home: ['first', 'first row'],
  End: ['last', 'last row'],
}
const RANGE: Record<string, [Action, string]> = {
  l: ['live', 'live on or off'],
  '[': ['older', 'the range before'],
  ']': ['newer', 'the range after'],
}
const TRACES: Record<string, [Action, string]> = {
  x: ['choose', 'select, to compare two'],
  f: ['filterCell', 'filter by the cell; → and ← go to the cells of a row'],
}
/** Of lists, and of the Overview, where they lead to the list of calls. */
const RANKED: Record<string, [Action, string]> = {
  $: ['dearest', 'the dearest first'],
  s: ['slowest', 'the slowest first'],
}
const TRACE: Record<string, [Action, string]> = {
  PageDown: ['pageDown', 'a screen down'],
  PageUp: ['pageUp', 'a screen up'],
  ArrowRight: ['right', 'unfold, or the first child'],
  ArrowLeft: ['left', 'fold, or the parent'],
  '[': ['foldAll', 'fold all'],
  ']': ['unfoldAll', 'unfold all'],
  e: ['nextError', 'next error'],
  E: ['previousError', 'previous error'],
  $: ['dearest', 'dearest span'],
  s: ['slowest', 'slowest span'],
  '.': ['zoom', 'zoom to the span'],
  '0': ['whole', 'the whole trace'],
  '+': ['zoomIn', 'zoom in'],
  '-': ['zoomOut', 'zoom out'],
  '<': ['earlier', 'earlier, if zoomed'],
  '>': ['later', 'later, if zoomed'],
  p: ['critical', 'outline the critical path'],
  d: ['byDepth', 'one lane for each level'],
  n: ['nextHit', 'next hit'],
  N: ['previousHit', 'previous hit'],
}

export type Key = { key: string; ctrl: boolean; alt: boolean; meta: boolean; inField: boolean }

/** The action of a key; null = it has none. *pending* is the key before it, such as `g` of `g t`. */
export function actionOf(pressed: Key, context: Context, pending = ''): Action | null {
  if (pressed.ctrl || pressed.alt || pressed.meta) return null
  if (pressed.inField) return pressed.key === 'Escape' ? 'close' : null
  if (pending === 'g') return Object.hasOwn(PLACES, pressed.key) ? `go:${PLACES[pressed.key as keyof typeof PLACES]}` : null
  if (context === 'trace' && /^[1-9]$/.test(pressed.key)) return `depth:${Number(pressed.key)}`
  for (const table of tablesOf(context)) {
    if (Object.hasOwn(table, pressed.key)) return table[pressed.key]![0]
  }
  return null
}

/** The tables of keys in *context*; the first that has a key decides. */
function tablesOf(context: Context): Record<string, [Action, string]>[] {
  const has = (...contexts: Context[]) => contexts.includes(context)
  return [
    has('trace') ? TRACE : RANGE, ...(has('traces') ? [TRACES] : []), ...(has('traces', 'calls', 'overview') ? [RANKED] : []),
    ...(has('page', 'overview') ? [] : [ROWS]), EVERYWHERE,
  ]
}

/** Every key of a page and what it does, for the list behind `?`. */
export function keysOf(context: Context): [string, string][] {
  const listed = tablesOf(context).flatMap((table) => Object.entries(table).map(([key, [, text]]): [string, string] => [key, text]))
  const depths: [string, string][] = context === 'trace' ? [['1–9', 'fold below this depth']] : []
  return [...listed, ...depths, ...Object.entries(PLACES).map(([key, place]): [string, string] => [`g ${key}`, place])]
}
