// Addresses: all that changes what is seen is behind the `#`, with the API's own names of parameters.

import { Params, type Pair } from './params'

/** The first word of an address -> the page without an id, and the page of one id. */
const PATHS = {
  '': ['overview', null],
  metric: [null, 'metric'],
  traces: ['traces', 'trace'],
  calls: ['calls', null],
  compare: ['compare', null],
  sessions: ['sessions', 'session'],
  alerts: ['alerts', 'rule'],
  health: ['health', null],
  login: ['login', null],
} as const

type Named = (typeof PATHS)[keyof typeof PATHS][number]
export type Page = Exclude<Named, null> | 'missing'
export type Route = { page: Page; id: string; params: Params }

function unescape(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch (error) {
    // A lone % is written by hand; it stands for itself.
    if (error instanceof URIError) return text
    throw error
  }
}

/** The route of `location.hash`. */
export function parseRoute(hash: string): Route {
  const text = hash.replace(/^#/, '')
  const at = text.indexOf('?')
  const path = (at < 0 ? text : text.slice(0, at)).replace(/^\//, '').replace(/\/$/, '')
  const params = new Params(at < 0 ? [] : new URLSearchParams(text.slice(at + 1)))
  const slash = path.indexOf('/')
  const [first, rest] = slash < 0 ? [path, ''] : [path.slice(0, slash), path.slice(slash + 1)]
  if (Object.hasOwn(PATHS, first)) {
    const [all, one] = PATHS[first as keyof typeof PATHS]
    if (all !== null && !rest) return { page: all, id: '', params }
    if (one !== null && rest) return { page: one, id: unescape(rest), params }
  }
  return { page: 'missing', id: unescape(path), params }
}

const FIRST = new Map(Object.entries(PATHS).flatMap(([first, pages]) => pages.map((page) => [page as string | null, first])))

/** The address of a page. A slash in an id is escaped, so that it stays one name. */
export function address(page: Exclude<Page, 'missing'>, id = '', params: Iterable<Pair> = []): string {
  const query = new URLSearchParams([...params].map(([name, value]) => [name, value])).toString()
  return `#/${FIRST.get(page)}${id ? `/${encodeURIComponent(id)}` : ''}${query ? `?${query}` : ''}`
}
