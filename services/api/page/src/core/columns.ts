// The columns of the list of traces: which are shown, in which order, and which filter a cell stands for.

import type { ListedTrace } from '../api/types'
import type { Params } from './params'

export type Column = {
  id: string
  label: string
  /** What `order=` sorts by; always the largest first. */
  order?: 'started' | 'duration' | 'cost' | 'tokens'
  number?: boolean
  /** The parameter that filters by a cell of the column. */
  filter?: string
}

const COLUMNS: readonly Column[] = [
  { id: 'started', label: 'started', order: 'started' },
  { id: 'name', label: 'name', filter: 'name' },
  { id: 'status', label: 'status', filter: 'status' },
  { id: 'duration', label: 'duration', order: 'duration', number: true },
  { id: 'cost', label: 'cost', order: 'cost', number: true },
  { id: 'tokens', label: 'tokens', order: 'tokens', number: true },
  { id: 'spans', label: 'spans', number: true },
  { id: 'models', label: 'models', filter: 'model' },
  { id: 'caller', label: 'caller', filter: 'caller' },
  { id: 'user', label: 'user', filter: 'user_id' },
  { id: 'session', label: 'session', filter: 'session_id' },
  { id: 'score', label: 'score', number: true },
]
const DEFAULT = ['started', 'name', 'status', 'duration', 'cost', 'tokens', 'spans', 'models', 'user', 'session']
const ATTRIBUTE = 'attr.'
/** Most attributes that a list shows; the API has the same limit. */
export const MOST_ATTRIBUTES = 10

export const ALL_COLUMNS: readonly string[] = COLUMNS.map(({ id }) => id)

/** The column called *id*; null = there is none. */
export function columnOf(id: string): Column | null {
  if (id.startsWith(ATTRIBUTE) && id.length > ATTRIBUTE.length) return { id, label: id, filter: id }
  return COLUMNS.find((column) => column.id === id) ?? null
}

/** The columns that an address asks for: `columns=` once for each; the name is always one, because it is the link. */
export function columnsOf(params: Params): Column[] {
  const asked = params.all('columns')
  const ids = asked.length ? [...new Set(asked)] : DEFAULT
  const found = ids.flatMap((id) => columnOf(id) ?? [])
  return found.some(({ id }) => id === 'name') ? found : [columnOf('name')!, ...found]
}

/** The columns of an address that there are not. */
export function unknownColumns(params: Params): string[] {
  return params.all('columns').filter((id) => !columnOf(id))
}

/** *params* with or without the column *id*; the usual columns need no parameter. */
export function withColumn(params: Params, id: string, isShown: boolean): Params {
  const before = columnsOf(params).map((column) => column.id)
  const after = isShown ? [...before.filter((other) => other !== id), id] : before.filter((other) => other !== id)
  const order = [...ALL_COLUMNS, ...after.filter((other) => other.startsWith(ATTRIBUTE))]
  const sorted = order.filter((other) => after.includes(other))
  let next = params.without('columns')
  if (sorted.join('\n') !== DEFAULT.join('\n')) for (const each of sorted) next = next.plus('columns', each)
  return next
}

/** The keys of the attributes among *columns*, in their order. */
export function attributesOf(columns: readonly Column[]): string[] {
  return columns.filter(({ id }) => id.startsWith(ATTRIBUTE)).map(({ id }) => id.slice(ATTRIBUTE.length))
}

/** The values that the cell of a trace filters by; "" = it asks for spans without one. */
export function valuesOf(column: Column, trace: ListedTrace): string[] {
  if (column.id.startsWith(ATTRIBUTE)) {
    const value = trace.attributes?.[column.id.slice(ATTRIBUTE.length)]
    return value === null || value === undefined ? [] : [value]
  }
  switch (column.id) {
    case 'name': return [trace.name]
    case 'status': return [trace.status]
    case 'models': return trace.models
    case 'caller': return [trace.caller ?? '']
    case 'user': return [trace.user_id ?? '']
    case 'session': return [trace.session_id ?? '']
    default: return []
  }
}
