// A list without traces: why, and the ways out.

import { getJson, query } from '../api/client'
import type { TracePage } from '../api/types'
import { chips, filtersOf, TRACE_FILTERS, without, words } from '../core/filter'
import { plain } from '../core/format'
import type { Params } from '../core/params'
import { address, type Route } from '../core/route'
import { ago, instant, offset } from '../core/time'
import { go, useAnswer, useShared } from '../parts/app'
import { FirstSpan } from '../parts/first_span'

const NO_RANGE = { window: null, from: null, to: null, cursor: null }
/** Half the range in which the last match is shown, milliseconds. */
const AROUND_MS = 30 * 60_000

export function Empty({ route }: { route: Route }) {
  const filters = chips(route.params)
  const isRanged = ['window', 'from', 'to'].some((name) => route.params.has(name))
  if (!filters.length && !isRanged && !route.params.has('cursor')) return <FirstSpan />
  const show = (params: Params) => go(address('traces', '', params))
  return (
    <div class="empty">
      <p>No trace {filters.length ? 'matches the filters' : 'started'}{isRanged ? ' in this range' : ''}.</p>
      {isRanged && <LastMatch route={route} show={show} />}
      <div class="bar">
        {filters.map((chip) => {
          const { what, value } = words(chip)
          return (
            <button type="button" key={`${chip.name}=${chip.value}`} onClick={() => show(without(route.params, chip.name, chip.value))}>
              without {plain(what)} {plain(value)}
            </button>
          )
        })}
        {isRanged && <button type="button" onClick={() => show(route.params.with(NO_RANGE))}>at any time</button>}
        {filters.length > 1 && <button type="button" onClick={() => show(filters.reduce((left, chip) => without(left, chip.name), route.params))}>without any filter</button>}
      </div>
    </div>
  )
}

/** When the newest trace started that matches at any time. */
function LastMatch({ route, show }: { route: Route; show: (params: Params) => void }) {
  const { zone } = useShared()
  const path = `./traces${query([...filtersOf(route.params, TRACE_FILTERS), ['limit', '1']])}`
  const answer = useAnswer(path, (options) => getJson<TracePage>(path, options))
  if (answer.error) return <p class="dim">When the last one started is not known: {plain(answer.error.message)}</p>
  if (!answer.data) return <p class="dim">Looking for the last one…</p>
  const [last] = answer.data.traces
  if (!last) {
    return <p>{answer.data.searched_until ? `None started since ${answer.data.searched_until}; earlier ones were not searched.` : 'There is none at any other time either.'}</p>
  }
  const at = Date.parse(last.started_at)
  const around = { window: null, from: new Date(at - AROUND_MS).toISOString(), to: new Date(at + AROUND_MS).toISOString(), cursor: null }
  return (
    <p>
      The last one started {ago(at, Date.now())}, at {instant(at, zone)} {offset(at, zone)}.{' '}
      <button type="button" onClick={() => show(route.params.with(around))}>show the hour around it</button>
    </p>
  )
}
