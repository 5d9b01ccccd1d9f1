import './sessions.css'
import { useRef } from 'preact/hooks'
import { getJson, query } from '../api/client'
import { filtersOf, SESSION_FILTERS, SESSION_ORDERS, type Session, type SessionOrder, type SessionPage, type SessionSummary } from '../api/sessions'
import { count, cut, duration, exactCount, exactMoney, NONE, plain, sum } from '../core/format'
import { held } from '../core/held'
import { address, type Route } from '../core/route'
import { allAbout, limits, shortInstant } from '../core/time'
import { go, useAnswer, useShared, useTitle } from '../parts/app'
import { useListKeys } from '../parts/list_keys'
import { FirstSpan } from '../parts/first_span'
import { rangeIn } from '../parts/range'
import { SessionFilters } from '../parts/session_filters'
import { Curl, Note, State } from '../parts/states'
import { scroller } from '../parts/scroller'

/** The parameters of the list, which its address and those of its sessions have. */
export const LIST_PARAMS = [...SESSION_FILTERS, 'window', 'from', 'to', 'order', 'page']
const OWN = new Set<string>(LIST_PARAMS)
export const STATUS_SIGNS: Readonly<Record<string, string>> = { active: '… ', error: '✕ ', completed: '✓ ' }

/** The parameters of the API that an address stands for; text = why it stands for none. */
function asked(route: Route): [string, string][] | string {
  const range = rangeIn(route)
  return typeof range === 'string' ? range : filtersOf(route.params, limits(range, Date.now()))
}

export function Sessions({ route }: { route: Route }) {
  const heading = useTitle('Sessions', 'sessions')
  const { params } = route
  const filters = asked(route)
  const isAsked = typeof filters !== 'string'
  const page: [string, string][] = ['order', 'page'].flatMap((name): [string, string][] => params.all(name).map((value) => [name, value]))
  const key = isAsked ? [...params].join('\n') : null
  const pathOf = (path: string, more: [string, string][]) => {
    const now = asked(route)
    return `${path}${query([...(typeof now === 'string' ? [] : now), ...more])}`
  }
  const list = useAnswer(key, (options) =>
    getJson<SessionPage>(pathOf('./api/sessions', page), options).then((data) => ({ key, data })), { refresh: true })
  const summary = useAnswer(isAsked ? `summary ${filtersOf(params, {}).join('\n')} ${params.get('window')} ${params.get('from')} ${params.get('to')}` : null,
    (options) => getJson<SessionSummary>(pathOf('./api/sessions/summary', []), options), { refresh: true })
  const kept = useRef<{ key: string | null; rows: readonly Session[] }>({ key: null, rows: [] })
  const fresh = list.data?.data
  const shown = held(kept.current.key === list.data?.key ? kept.current.rows : null, fresh?.sessions ?? [], (each) => each.sessionId)
  if (list.data) kept.current = { key: list.data.key, rows: shown.rows }
  const showNew = () => {
    kept.current = { key: null, rows: [] }
    list.reload()
    summary.reload()
  }
  const body = useRef<HTMLTableSectionElement>(null)
  useListKeys(body, 'td.name a', showNew)
  const exported = (format: string) => pathOf('./api/sessions/export', [...page.filter(([name]) => name === 'order'), ['format', format]])
  const isFiltered = params.names().some((name) => name !== 'order' && OWN.has(name))
  return (
    <>
      <h1 ref={heading} tabIndex={-1}>Sessions</h1>
      {!isAsked && <Note kind="error" text={plain(filters)} />}
      <Cards answer={summary} />
      <SessionFilters route={route} />
      {params.names().filter((name) => !OWN.has(name)).map((name) => (
        <span class="chip wrong" key={name}>{plain(name)}: not understood
          <button type="button" aria-label={`remove ${plain(name)}`} onClick={() => go(address('sessions', '', params.without(name)))}>×</button></span>
      ))}
      {isAsked && (list.error || list.waiting || !fresh) && <State answer={list} />}
      {isAsked && fresh && (
        <div class={list.loading ? 'stale' : ''}>
          <div class="bar">
            <span>{exactCount(fresh.total)} {fresh.total === 1 ? 'session' : 'sessions'}</span>
            {shown.news > 0 && <button type="button" onClick={showNew}>↑ {count(shown.news)} new</button>}
            <a download href={exported('json')} title="all pages, as an array">export all as JSON</a>
            <a download href={exported('csv')} title="all pages, for Excel and others">as CSV for Excel</a>
          </div>
          {shown.rows.length > 0 ? <List sessions={shown.rows} route={route} body={body} />
            : <Empty route={route} isFiltered={isFiltered} />}
          <Pager page={fresh} route={route} />
          <Curl path={pathOf('./api/sessions', page)} />
        </div>
      )}
    </>
  )
}

function Cards({ answer }: { answer: ReturnType<typeof useAnswer<SessionSummary>> }) {
  const { data } = answer
  if (!data) return answer.error ? <State answer={answer} /> : <div class="sessions-cards sessions-waiting" />
  const ended = data.endedSessions
  return (
    <dl class={answer.loading ? 'sessions-cards stale' : 'sessions-cards'}>
      <div><dt>Sessions</dt><dd title={exactCount(data.totalSessions)}>{count(data.totalSessions)}</dd>
        <dd class="dim">{count(data.completedSessions)} completed, {count(data.errorSessions)} with errors</dd></div>
      <div><dt>Active</dt><dd title={exactCount(data.activeSessions)}>{count(data.activeSessions)}</dd>
        <dd class="dim">neither ended nor failed</dd></div>
      <div><dt>Cost</dt><dd title={exactMoney(data.totalCost)}>{sum(data.totalCost, data.unpricedSpanCount)}</dd>
        <dd class="dim">{count(data.totalTokens.input)} → {count(data.totalTokens.output)} tokens</dd></div>
      <div><dt>Mean duration</dt><dd>{ended ? duration(data.avgDuration) : NONE}</dd>
        <dd class="dim">{ended ? `of the ${count(ended)} that were ended` : 'no session was ended'}</dd></div>
    </dl>
  )
}

const COLUMNS: readonly (readonly [string, SessionOrder | null, boolean])[] = [
  ['status', null, false], ['session', null, false], ['user', null, false], ['started', 'started', false],
  ['duration', 'duration', true], ['spans', 'spans', true], ['tokens', 'tokens', true], ['cost', 'cost', true], ['source', null, false],
]

function List({ sessions, route, body }: {
  sessions: readonly Session[]; route: Route; body: { current: HTMLTableSectionElement | null }
}) {
  const { zone } = useShared()
  const now = Date.now()
  const order = (SESSION_ORDERS as readonly string[]).find((name) => name === route.params.get('order')) ?? 'started'
  const sort = (by: SessionOrder) => go(address('sessions', '', route.params.with({ order: by === 'started' ? null : by, page: null })))
  return (
    <div class="scroll" ref={scroller}>
      <table class="sessions-list">
        <thead>
          <tr>
            {COLUMNS.map(([name, by, isNumber]) => (
              <th key={name} class={isNumber ? 'number' : ''} aria-sort={by === null ? undefined : by === order ? 'descending' : 'none'}>
                {by === null ? name : <button type="button" class="sessions-sort" onClick={() => sort(by)}>{name}{by === order ? ' ▾' : ''}</button>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody ref={body}>
          {sessions.map((session) => {
            const started = Date.parse(session.startedAt)
            return (
              <tr key={session.sessionId}>
                <td class={`status-${session.status}`}>{STATUS_SIGNS[session.status]}{session.status}</td>
                <td class="name">
                  <a href={address('session', session.sessionId, route.params)}>{plain(cut(session.label || session.sessionId, 120))}</a>
                  {session.label && <div class="dim">{plain(cut(session.sessionId, 40))}</div>}
                  {session.error && <div class="status-error">{plain(cut(session.error.message, 120))}</div>}
                </td>
                <td class="sessions-user">{session.userId ? plain(cut(session.userId, 60)) : NONE}</td>
                <td class="time" title={allAbout(started, now, zone)}>{shortInstant(started, now, zone)}</td>
                <td class="number">{duration(session.duration)}{session.status === 'active' && session.openSpans > 0 && <span class="dim"> so far</span>}</td>
                <td class="number" title={exactCount(session.totalSpans)}>{count(session.totalSpans)}{session.openSpans > 0 && <span class="dim"> ({count(session.openSpans)} open)</span>}</td>
                <td class="number" title={`${exactCount(session.totalInputTokens)} → ${exactCount(session.totalOutputTokens)}`}>
                  {count(session.totalInputTokens)} → {count(session.totalOutputTokens)}</td>
                <td class="number" title={exactMoney(session.totalCostUSD)}>{sum(session.totalCostUSD, session.unpricedSpanCount)}</td>
                <td>{plain(session.source)}</td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}

function Pager({ page, route }: { page: SessionPage; route: Route }) {
  if (page.pages <= 1 && page.page === 1) return null
  const to = (number: number) => go(address('sessions', '', route.params.with({ page: number <= 1 ? null : String(number) })))
  return (
    <nav class="bar" aria-label="Pages of the list">
      <button type="button" disabled={page.page <= 1} onClick={() => to(1)}>« first</button>
      <button type="button" disabled={page.page <= 1} onClick={() => to(Math.min(page.page - 1, page.pages))}>‹ previous</button>
      <span>page {exactCount(page.page)} of {exactCount(page.pages)}</span>
      <button type="button" disabled={page.page >= page.pages} onClick={() => to(page.page + 1)}>next ›</button>
      <button type="button" disabled={page.page >= page.pages} onClick={() => to(page.pages)}>last »</button>
    </nav>
  )
}

function Empty({ route, isFiltered }: { route: Route; isFiltered: boolean }) {
  const { params } = route
  if (!isFiltered) {
    return (
      <>
        <p>A session is all spans with one <code>session_id</code>: a conversation, or one run of a workflow. No span has one yet.</p>
        <FirstSpan />
      </>
    )
  }
  const names = params.names().filter((name) => OWN.has(name) && !['order', 'window', 'from', 'to'].includes(name))
  return (
    <div class="empty">
      <p>No session matches.</p>
      <div class="bar">
        {names.map((name) => (
          <button type="button" key={name} onClick={() => go(address('sessions', '', params.without(name).without('page')))}>
            without {name} = {plain(params.all(name).join(', ')) || '(none)'}
          </button>
        ))}
        {['window', 'from', 'to'].some((name) => params.has(name)) && (
          <button type="button" onClick={() => go(address('sessions', '', params.with({ window: null, from: null, to: null, page: null })))}>at any time</button>
        )}
      </div>
    </div>
  )
}
