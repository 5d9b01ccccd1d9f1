// The list of calls: the dearest and the slowest ones, whatever trace they are in.

import { useRef } from 'preact/hooks'
import { getJson, query } from '../api/client'
import { CALL_ORDERS, type CallsPage, type ListedCall } from '../api/types'
import { CALL_FILTERS, filtersOf, within } from '../core/filter'
import { count, cut, duration, exactCount, exactMoney, money, NONE, plain } from '../core/format'
import { held } from '../core/held'
import type { Pair, Params } from '../core/params'
import { address, type Route } from '../core/route'
import { allAbout, rangeOf, shortInstant } from '../core/time'
import { go, toHeading, useAnswer, useShared, useTitle } from '../parts/app'
import { FilterBar } from '../parts/filterbar'
import { useListKeys } from '../parts/list_keys'
import { scroller } from '../parts/scroller'
import { Curl, Note, State } from '../parts/states'
import { mark } from '../parts/status'
import './traces.css'

type Order = (typeof CALL_ORDERS)[number]
const LIMIT = '100'

/** The receipt of a call; *list* is what the list of traces is filtered by. */
export function callAddress(call: ListedCall, list: Params): string {
  return address('trace', call.trace_id, list.with({ order: null, cursor: null, span: call.span_id, tab: 'receipt' }))
}

export function costOf(call: ListedCall): string {
  return `${call.cost_source === 'partly_priced' ? '≥ ' : ''}${money(call.cost_usd)}`
}

/** Which of the two lists is shown: traces, or single calls with the same filters. */
export function ListChoice({ route }: { route: Route }) {
  const params = ['order', 'cursor', 'columns'].reduce<Params>((left, name) => left.without(name), route.params)
  return (
    <nav class="traces-choices" aria-label="What is listed">
      {(['traces', 'calls'] as const).map((page) => (
        <a key={page} href={address(page, '', params)} aria-current={route.page === page ? 'page' : undefined}>{page}</a>
      ))}
    </nav>
  )
}

export function Calls({ route }: { route: Route }) {
  const heading = useTitle('Calls', 'calls')
  const { params } = route
  const range = rangeOf(params)
  const order = params.get('order') ?? 'started'
  const own = (['order', 'cursor'] as const).flatMap((name): Pair[] => (params.has(name) ? [[name, params.get(name)!]] : []))
  const path = typeof range === 'string' ? null : `./calls${query([...filtersOf(params, CALL_FILTERS), ...within(range), ...own, ['limit', LIMIT]])}`
  const answer = useAnswer(path, (options) => getJson<CallsPage>(path!, options).then((page) => ({ path, page })), { refresh: !params.has('cursor') })
  // Rows stay where they are while they are read; new ones wait until they are asked for.
  const kept = useRef<{ path: string | null; rows: readonly ListedCall[] }>({ path: null, rows: [] })
  const { data } = answer
  const shown = held(kept.current.path === data?.path ? kept.current.rows : null, data?.page.calls ?? [], (call) => `${call.trace_id}/${call.span_id}`)
  if (data) kept.current = { path: data.path, rows: shown.rows }
  const showNew = () => {
    kept.current = { path: null, rows: [] }
    answer.reload()
  }
  const show = (changes: Record<string, string | null>) => go(address('calls', '', params.with(changes)))
  const sort = (by: Order) => show({ order: by === 'started' ? null : by, cursor: null })
  const body = useRef<HTMLTableSectionElement>(null)
  useListKeys(body, 'td.name a', showNew, 'calls', (action) => {
    if (action === 'dearest') return sort('cost'), toHeading()
    if (action === 'slowest') return sort('latency'), toHeading()
    return false
  })
  return (
    <>
      <h1 ref={heading} tabIndex={-1}>Calls</h1>
      <FilterBar params={params} filters={CALL_FILTERS} range={typeof range === 'string' ? [] : within(range)} change={(next) => go(address('calls', '', next))} />
      {typeof range === 'string' ? <Note kind="error" text={plain(range)} /> : <State answer={answer} />}
      {data && path !== null && (
        <div class={data.path !== path || answer.loading ? 'stale' : ''}>
          <div class="bar traces-tools">
            <ListChoice route={route} />
            <span>showing {exactCount(shown.rows.length)} of {exactCount(data.page.total)}</span>
            {shown.news > 0 && <button type="button" class="traces-new" onClick={showNew}>↑ {count(shown.news)} new</button>}
          </div>
          {shown.rows.length ? <List calls={shown.rows} route={route} order={order} sort={sort} body={body} /> : <p class="empty">No call matches.</p>}
          <div class="bar">
            {params.has('cursor') && <button type="button" onClick={() => show({ cursor: null })}>« first page</button>}
            {data.page.next_cursor && <button type="button" onClick={() => show({ cursor: data.page.next_cursor })}>more ›</button>}
          </div>
          <Curl path={path} />
        </div>
      )}
    </>
  )
}

const COLUMNS: readonly (readonly [string, Order | null])[] = [
  ['started', 'started'], ['name', null], ['cost', 'cost'], ['latency', 'latency'], ['tokens', 'tokens'], ['first token', null],
  ['model', null], ['kind', null], ['caller', null], ['user', null],
]

function List({ calls, route, order, sort, body }: {
  calls: readonly ListedCall[]; route: Route; order: string; sort: (by: Order) => void; body: { current: HTMLTableSectionElement | null }
}) {
  const { zone } = useShared()
  const now = Date.now()
  const text = (value: string | null) => <td class="traces-text">{value === null ? <span class="dim">{NONE}</span> : plain(cut(value, 60))}</td>
  return (
    <div class="scroll" ref={scroller}>
      <table class="traces">
        <thead>
          <tr>
            {COLUMNS.map(([name, by]) => (
              <th key={name} class={by && by !== 'started' || name === 'first token' ? 'number' : ''} aria-sort={by === null ? undefined : by === order ? 'descending' : 'none'}>
                {by === null ? name : <button type="button" class="traces-sort" onClick={() => sort(by)}>{name}{by === order ? ' ▾' : ''}</button>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody ref={body}>
          {calls.map((call) => {
            const at = Date.parse(call.started_at)
            return (
              <tr key={`${call.trace_id}/${call.span_id}`}>
                <td class="time" title={allAbout(at, now, zone)}>{shortInstant(at, now, zone)}</td>
                <td class="name">
                  <span class={`status-${call.status}`}>{mark(call.status)}</span><a href={callAddress(call, route.params)}>{plain(call.name) || '(no name)'}</a>
                  {call.error && <span class="traces-error" title={plain(call.error)}>{cut(plain(call.error), 120)}</span>}
                </td>
                <td class="number" title={exactMoney(call.cost_usd)}>{costOf(call)}</td>
                <td class="number">{duration(call.latency_ms)}</td>
                <td class="number" title={exactCount(call.total_tokens)}>{count(call.total_tokens)}</td>
                <td class="number">{duration(call.ttft_ms)}</td>
                {[call.model, call.kind, call.caller, call.user_id].map(text)}
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}
