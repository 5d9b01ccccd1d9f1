// What rules did: firings and resolutions of 30 days, and what became of the delivery of each.

import type { EventPage, ListedEvent } from '../api/alerts'
import { getJson, query } from '../api/client'
import { outcomeText, unitOf, valueOf } from '../core/alerts'
import { plain } from '../core/format'
import type { Pair } from '../core/params'
import { address, type Route } from '../core/route'
import { go, useAnswer, useShared } from '../parts/app'
import { useRules } from '../parts/rules'
import { Curl, State } from '../parts/states'
import { When } from './alert_row'

const [LIMIT, LIMIT_OF_RULE] = ['30', '10']
const OUTCOMES: [string, string][] = [
  ['', 'any outcome'], ['delivered', 'delivered'], ['retry,dead,expired', 'not delivered'], ['dead', 'dead'], ['retry', 'tried again'],
  ['expired', 'expired'], ['pending', 'waits'], ['none', 'published only'], ['unknown', 'not known any more'],
]
const STATUSES: [string, string][] = [['', 'fired and resolved'], ['firing', 'fired'], ['resolved', 'resolved']]
export const HISTORY_PARAMS = ['rule', 'outcome', 'status', 'cursor']

/** The events of all rules, or of the rule *only*, with filters that are kept in the address. */
export function History({ route, names, only }: { route: Route; names: readonly string[]; only?: string }) {
  const here = route.page === 'rule' ? 'rule' : 'alerts'
  const params = HISTORY_PARAMS.flatMap((name): Pair[] => {
    const value = name === 'rule' && only !== undefined ? only : route.params.get(name)
    return value === undefined || value === '' ? [] : [[name, value]]
  })
  const path = `./alerts/events${query([...params, ['limit', only === undefined ? LIMIT : LIMIT_OF_RULE]])}`
  const cursor = route.params.get('cursor')
  const answer = useAnswer(path, (options) => getJson<EventPage>(path, options), { refresh: !cursor })
  const change = (changes: Record<string, string | null>) => go(address(here, route.id, route.params.with({ cursor: null, ...changes })))
  const choice = (id: string, name: string, label: string, options: readonly (readonly [string, string])[]) => {
    const value = route.params.get(name) ?? ''
    const all = options.some(([each]) => each === value) ? options : [...options, [value, plain(value)] as const]
    return (
      <>
        <label class="unseen" for={id}>{label}</label>
        <select id={id} value={value} onChange={(event) => change({ [name]: event.currentTarget.value || null })}>
          {all.map(([each, text]) => <option key={each} value={each}>{text}</option>)}
        </select>
      </>
    )
  }
  const isFiltered = params.some(([name]) => name !== 'cursor' && !(name === 'rule' && only !== undefined))
  return (
    <section class="alerts-section" aria-labelledby="alerts-history">
      <h2 id="alerts-history">History of 30 days</h2>
      <div class="bar">
        {only === undefined && choice('filter', 'rule', 'rule', [['', 'any rule'], ...names.map((name) => [name, plain(name)] as const)])}
        {choice('alerts-status', 'status', 'what happened', STATUSES)}
        {choice('alerts-outcome', 'outcome', 'what became of the delivery', OUTCOMES)}
        {isFiltered && <button type="button" onClick={() => change({ rule: null, status: null, outcome: null })}>clear</button>}
      </div>
      <State answer={answer} />
      {answer.data && (
        <div class={answer.loading ? 'stale' : ''}>
          {answer.data.count === 0
            ? <p class="dim">{isFiltered ? 'No event matches the filter.' : only === undefined ? 'No rule has fired in the last 30 days.' : 'The rule has not fired in the last 30 days.'}</p>
            : <Events events={answer.data.events} withRule={only === undefined} />}
          <div class="bar">
            {cursor && <button type="button" onClick={() => change({})}>‹ newest</button>}
            {answer.data.next_cursor && <button type="button" onClick={() => change({ cursor: answer.data!.next_cursor })}>older ›</button>}
          </div>
        </div>
      )}
      <Curl path={path} />
    </section>
  )
}

function Events({ events, withRule }: { events: readonly ListedEvent[]; withRule: boolean }) {
  const { about } = useShared()
  // An event does not say whether its value is a change in percent; its rule does.
  const rules = useRules().data ?? []
  const changeOf = (name: string) => rules.find((rule) => rule.name === name) ?? {}
  return (
    <div class="scroll" role="region" aria-label="events" tabIndex={0}>
      <table class="alerts-history">
        <thead>
          <tr>
            <th scope="col" aria-sort="descending">at</th><th scope="col">what</th>{withRule && <th scope="col">rule</th>}
            <th scope="col">value</th><th scope="col">group</th><th scope="col">delivery</th>
          </tr>
        </thead>
        <tbody>
          {events.map((event) => {
            const isFiring = event.status === 'firing'
            const { sign, word, tone } = outcomeText(event.delivery)
            const groups = Object.entries(event.group)
            return (
              <tr key={`${event.alert}/${event.fired_at}/${event.status}/${groups.join()}`}>
                <td class="time"><When at={event.fired_at} /></td>
                <td class={isFiring ? (event.level === 'critical' ? 'alerts-error' : 'alerts-warning') : 'alerts-ok'} title={plain(event.message)}>
                  <span aria-hidden="true">{isFiring ? '●' : '✓'}</span> {isFiring ? 'fired' : 'resolved'}
                  {event.ended_by && event.ended_by !== 'recovered' && <span class="dim">, {plain(event.ended_by).replace('_', ' ')}</span>}
                </td>
                {withRule && <td class="alerts-name"><a href={address('rule', event.alert)}>{plain(event.alert)}</a></td>}
                <td title={plain(event.message)}>{valueOf(event.value, changeOf(event.alert), unitOf(event.metric, about?.metrics ?? []))}</td>
                <td class="name">{groups.length ? groups.map(([key, value]) => `${plain(key)} = ${plain(value) || '(none)'}`).join(', ') : <span class="dim">–</span>}</td>
                <td>
                  <span class={`alerts-${tone}`}><span aria-hidden="true">{sign}</span> {word}</span>
                  {event.delivery.destination && <div class="dim alerts-where">{plain(event.delivery.channel ?? '')} {plain(event.delivery.destination)}</div>}
                  {event.delivery.error && <div class="dim">{plain(event.delivery.error)}</div>}
                </td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}
