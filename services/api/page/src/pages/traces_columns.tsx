// Which columns the list has.

import { getJson, query } from '../api/client'
import type { HeldKeys } from '../api/values'
import { ALL_COLUMNS, attributesOf, columnOf, columnsOf, MOST_ATTRIBUTES, withColumn } from '../core/columns'
import { filtersOfSpans, TRACE_FILTERS, within } from '../core/filter'
import { plain } from '../core/format'
import { address, type Route } from '../core/route'
import { rangeOf } from '../core/time'
import { go, useAnswer } from '../parts/app'

const MOST_KEYS = '50'

export function Columns({ route }: { route: Route }) {
  const range = rangeOf(route.params)
  const path = `./keys${query([['limit', MOST_KEYS], ...filtersOfSpans(route.params, TRACE_FILTERS, ''), ...(typeof range === 'string' ? [] : within(range))])}`
  const keys = useAnswer(path, (options) => getJson<HeldKeys>(path, options))
  const shown = columnsOf(route.params).map(({ id }) => id)
  const isFull = attributesOf(columnsOf(route.params)).length >= MOST_ATTRIBUTES
  const attributes = [...new Set([...shown.filter((id) => id.startsWith('attr.')), ...(keys.data?.keys ?? []).map(({ key }) => `attr.${key}`)])]
  const box = (id: string) => (
    <label key={id}>
      <input type="checkbox" checked={shown.includes(id)} disabled={id === 'name' || (isFull && id.startsWith('attr.') && !shown.includes(id))}
        onChange={(event) => go(address('traces', '', withColumn(route.params, id, event.currentTarget.checked)), true)} />
      {plain(columnOf(id)!.label)}
    </label>
  )
  return (
    <div class="traces-columns">
      <fieldset><legend>of every trace</legend>{ALL_COLUMNS.map(box)}</fieldset>
      <fieldset>
        <legend>attributes</legend>
        {attributes.map(box)}
        {keys.error && <p class="note error">{plain(keys.error.message)}</p>}
        {!keys.data && keys.loading && <p class="dim">Loading…</p>}
        {keys.data && !attributes.length && <p class="dim">No span that matches has attributes.</p>}
        {keys.data?.more && <p class="dim">The most frequent ones; a filter leaves fewer.</p>}
        {isFull && <p class="dim">At most {MOST_ATTRIBUTES} attributes at once.</p>}
      </fieldset>
    </div>
  )
}
