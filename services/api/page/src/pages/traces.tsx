// The list of traces: which call was it.

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks'
import { getJson, query } from '../api/client'
import type { TracePage } from '../api/types'
import { attributesOf, columnsOf, unknownColumns } from '../core/columns'
import { filtersOf, TRACE_FILTERS, within } from '../core/filter'
import { exactCount, plain } from '../core/format'
import type { Params, Pair } from '../core/params'
import { address, type Route } from '../core/route'
import { rangeOf } from '../core/time'
import { go, toHeading, useAnswer, useShared, useTitle } from '../parts/app'
import { Dropdown } from '../parts/dropdown'
import { FilterBar } from '../parts/filterbar'
import { keepList, keptList, leftAt, listKey } from '../parts/kept_list'
import { useListKeys } from '../parts/list_keys'
import { Curl, Note, State } from '../parts/states'
import { ListChoice } from './calls'
import { Columns } from './traces_columns'
import { Empty } from './traces_empty'
import { focusedCell, List } from './traces_list'
import { useNews } from './traces_live'
import { filterBy } from './traces_menu'
import { Strip } from './traces_strip'
import './traces.css'

const LIMIT = '100'

/** The request that an address stands for; null = its range is wrong. */
function pathOf(params: Params): string | null {
  const range = rangeOf(params)
  if (typeof range === 'string') return null
  const own = (['order', 'cursor'] as const).flatMap((name): Pair[] => (params.has(name) ? [[name, params.get(name)!]] : []))
  const attributes = attributesOf(columnsOf(params)).map((key): Pair => ['attribute', key])
  return `./traces${query([...filtersOf(params), ...within(range), ...own, ...attributes, ['limit', LIMIT]])}`
}

/**
 * The page of traces that is shown. Rows stay where they are while they are read: those that are there are brought up to
 * date in place, and new ones are only named until `show` is called. Back shows what was left.
 */
function useList(route: Route) {
  const { live } = useShared()
  const key = listKey(route.params)
  const path = pathOf(route.params)
  const [shown, setShown] = useState<{ key: string; page: TracePage } | null>(() => {
    const page = leftAt() ? keptList(route.params) : null
    return page && { key, page }
  })
  const asksAnew = useRef(false)
  const [version, setVersion] = useState(0)
  const isFirst = !route.params.has('cursor')
  const answer = useAnswer(path && key, (options) => getJson<TracePage>(path!, options).then((page) => ({ key, page })), { refresh: isFirst })
  const { data, reload } = answer
  useLayoutEffect(() => {
    if (data?.key !== key) return
    setShown((before) => {
      const isNew = before?.key !== key || asksAnew.current || before.page.count === 0
      asksAnew.current = false
      if (isNew) return data
      const fresh = new Map(data.page.traces.map((trace) => [trace.trace_id, trace]))
      return { key, page: { ...data.page, next_cursor: before.page.next_cursor, traces: before.page.traces.map((trace) => fresh.get(trace.trace_id) ?? trace) } }
    })
  }, [data, key])
  const show = useCallback(() => {
    asksAnew.current = true
    setVersion((before) => before + 1)
    reload()
  }, [reload])
  const page = shown?.page ?? null
  const listed = useMemo(() => new Set(page?.traces.map((trace) => trace.trace_id)), [page])
  const follows = path !== null && live && isFirst && !route.params.has('from')
  const news = useNews(follows, filtersOf(route.params), listed)
  const unseen = new Set([...news.ids, ...(data?.key === key && isFirst ? data.page.trace_ids.filter((id) => !listed.has(id)) : [])])
  useEffect(() => {
    if (page && shown?.key === key) keepList(route.params, page)
  }, [page, shown, key])
  useEffect(() => {
    // Nothing can move under the reader of an empty list.
    if (page?.count === 0 && news.ids.size) {
      news.forget()
      show()
    }
  }, [page, news, show])
  return { path, answer, page, isOld: shown !== null && shown.key !== key, unseen, news, follows, version, show: () => { news.forget(); show() } }
}

export function Traces({ route }: { route: Route }) {
  const { say } = useShared()
  const heading = useTitle('Traces', 'traces')
  const list = useList(route)
  const { page, path, answer, news } = list
  const range = rangeOf(route.params)
  const columns = columnsOf(route.params)
  const cursor = route.params.get('cursor')
  const order = route.params.get('order') ?? 'started'
  const [chosen, choose] = useState<readonly string[]>([])
  const root = useRef<HTMLDivElement>(null)
  const show = (changes: Record<string, string | null>) => go(address('traces', '', route.params.with(changes)))
  useRestored(root, page !== null && !list.isOld)

  const sort = (by: string) => show({ order: by === 'started' ? null : by, cursor: null })
  const sortByKey = (by: string) => {
    sort(by)
    return toHeading()
  }
  const select = (id: string) => choose((before) => (before.includes(id) ? before.filter((other) => other !== id) : [...before.slice(-1), id]))
  useListKeys(root, 'td.name a', list.show, 'traces', (action) => {
    switch (action) {
      case 'dearest': return sortByKey('cost')
      case 'slowest': return sortByKey('duration')
      case 'choose': {
        const cell = page && focusedCell(page.traces)
        return cell ? (select(cell.trace.trace_id), true) : false
      }
      case 'filterCell': {
        const cell = page && focusedCell(page.traces)
        if (!cell) return false
        return filterBy(route, cell) || (say('This column is no filter'), true)
      }
      default: return false
    }
  })
  const spans = typeof range === 'string' ? [] : [...filtersOf(route.params), ...within(range)]
  return (
    <>
      <h1 ref={heading} tabIndex={-1}>Traces</h1>
      <FilterBar params={route.params} filters={TRACE_FILTERS} range={typeof range === 'string' ? [] : within(range)}
        change={(params) => go(address('traces', '', params))} />
      {unknownColumns(route.params).map((id) => <Note key={id} text={`columns: there is no column “${plain(id)}”`} />)}
      {typeof range === 'string' ? <Note kind="error" text={plain(range)} /> : page?.count === 0 ? null : <Strip route={route} version={list.version} />}
      {path !== null && <State answer={{ ...answer, data: page }} />}
      {page && path !== null && (
        <div class={list.isOld || (answer.loading && !list.unseen.size) ? 'stale' : ''} ref={root}>
          <div class="bar traces-tools">
            <ListChoice route={route} />
            <span>{page.total === null ? `showing ${exactCount(page.traces.length)}` : `showing ${exactCount(page.traces.length)} of ${exactCount(page.total)}`}</span>
            {list.unseen.size > 0 && page.count > 0 && (
              <button type="button" class="traces-new" onClick={list.show}>↑ {exactCount(list.unseen.size)} new</button>
            )}
            {list.follows && (
              <span class="dim" title="spans that match the filters and arrive now, as the live tail tells them">
                {news.isUp ? (news.rate === null ? 'following…' : `live: ${news.rate} spans/s`) : 'not connected, trying again'}
                {news.dropped > 0 && `, ${exactCount(news.dropped)} not told because there were too many`}
              </span>
            )}
            <Compared chosen={chosen} clear={() => choose([])} />
            <span class="traces-right">
              <Dropdown label="columns">{() => <Columns route={route} />}</Dropdown>
              <Dropdown label="export">
                {() => (
                  <div class="traces-export">
                    <p>Every span that matches these filters, not only those of the {exactCount(page.count)} traces below.</p>
                    <a download href={`./export${query(spans)}`}>spans as JSON lines</a>
                    <a download href={`./export${query([...spans, ['format', 'csv']])}`}>spans as CSV</a>
                  </div>
                )}
              </Dropdown>
            </span>
          </div>
          {page.searched_until && (
            <Note text={order === 'started'
              ? `The search took too long and ended early: traces before ${page.searched_until} have not been searched. “older” goes on.`
              : `There is too much to sort: traces that started before ${page.searched_until} are not in this order.`} />
          )}
          {page.count === 0 ? <Empty route={route} /> : (
            <List route={route} traces={page.traces} columns={columns} order={order} selected={chosen} select={select} now={Date.now()}
              sort={sort} />
          )}
          <div class="bar">
            {cursor && <button type="button" onClick={() => show({ cursor: null })}>« first page</button>}
            {page.next_cursor && <button type="button" onClick={() => show({ cursor: page.next_cursor! })}>{order === 'started' ? 'older ›' : 'more ›'}</button>}
          </div>
          <Curl path={path} />
        </div>
      )}
    </>
  )
}

function Compared({ chosen, clear }: { chosen: readonly string[]; clear: () => void }) {
  if (!chosen.length) return null
  return (
    <span class="traces-compared">
      {chosen.length === 1 ? 'one trace selected; select another to compare' : (
        <a href={address('compare', '', chosen.map((id) => ['trace', id] as const))}>compare the two selected traces</a>
      )}
      <button type="button" aria-label="select none" onClick={clear}>×</button>
    </span>
  )
}

/** Goes back to the row through which the list was left, once it is there. */
function useRestored(root: { current: HTMLElement | null }, isReady: boolean): void {
  const left = useRef(leftAt())
  useEffect(() => {
    if (!isReady || !left.current) return
    const { id, y } = left.current
    left.current = null
    scrollTo(0, y)
    root.current?.querySelector<HTMLElement>(`tr[data-trace="${CSS.escape(id)}"] td.name a`)?.focus({ preventScroll: true })
  }, [isReady])
}
