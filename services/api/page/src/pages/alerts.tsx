// All rules with their state, and what they did in the last 30 days.

import { useEffect, useRef, useState } from 'preact/hooks'
import './alerts.css'
import type { RuleState } from '../api/alerts'
import { byUrgency, DIMENSIONS, isPrefill, prefilled, signOf } from '../core/alerts'
import { count, plain } from '../core/format'
import { address, type Route } from '../core/route'
import { go, useShared, useTitle } from '../parts/app'
import { useListKeys } from '../parts/list_keys'
import { askRules, RULES_PATH, useRules } from '../parts/rules'
import { Curl, Failed, Note } from '../parts/states'
import { History, HISTORY_PARAMS } from './alert_history'
import { RuleForm } from './alert_form'
import { RuleRow } from './alert_row'
import { scroller } from '../parts/scroller'

export function Alerts({ route }: { route: Route }) {
  return route.params.get('new') === '1' ? <NewRule route={route} /> : <List route={route} />
}

function List({ route }: { route: Route }) {
  const heading = useTitle('Alerts', route.id)
  const rules = useRules()
  const body = useRef<HTMLTableSectionElement>(null)
  useEndedSilences(rules.data)
  useListKeys(body, 'th a', askRules)
  const isEmpty = rules.data?.length === 0
  return (
    <>
      <div class="bar">
        <h1 ref={heading} tabIndex={-1}>Alerts</h1>
        <a class="alerts-new" href={address('alerts', '', [['new', '1']])}>+ new rule</a>
      </div>
      <NotUnderstood route={route} known={(name) => HISTORY_PARAMS.includes(name)} />
      {rules.waiting && <Note text={plain(rules.waiting)} />}
      {rules.error && <Failed error={rules.error} retry={askRules} />}
      {!rules.data && !rules.error && <div class="outline">Loading…</div>}
      {isEmpty && <NoRules />}
      {rules.data && !isEmpty && (
        <>
          <p class="dim" id="alerts-sum">{summary(rules.data)}</p>
          <div class="scroll" ref={scroller}>
            <table class="alerts-rules" aria-describedby="alerts-sum">
              <thead>
                <tr>
                  <th scope="col">rule</th><th scope="col" aria-sort="descending">state</th><th scope="col">value and threshold</th>
                  <th scope="col">since</th><th scope="col">instances</th><th scope="col">wakes</th><th scope="col">next look</th>
                  <th scope="col"><span class="unseen">actions</span></th>
                </tr>
              </thead>
              <tbody ref={body}>{byUrgency(rules.data).map((rule) => <RuleRow key={rule.name} rule={rule} />)}</tbody>
            </table>
          </div>
          <Curl path={RULES_PATH} />
        </>
      )}
      {rules.data && <History route={route} names={rules.data.map((rule) => rule.name)} />}
    </>
  )
}

function summary(rules: readonly RuleState[]): string {
  const firing = rules.filter((rule) => signOf(rule).word.startsWith('firing')).length
  const silenced = rules.filter((rule) => rule.silenced).length
  const dead = rules.filter((rule) => rule.last_delivery?.outcome === 'dead').length
  const parts = [`${count(rules.length)} ${rules.length === 1 ? 'rule' : 'rules'}`, firing ? `${count(firing)} firing` : 'none firing']
  if (silenced) parts.push(`${count(silenced)} silenced`)
  if (dead) parts.push(`${count(dead)} whose last delivery failed for good`)
  return parts.join(', ')
}

/** Says so when a silence ends while the page is open. */
function useEndedSilences(rules: readonly RuleState[] | null): void {
  const { say } = useShared()
  const before = useRef<ReadonlySet<string>>(new Set())
  useEffect(() => {
    if (!rules) return
    const ended = rules.filter((rule) => !rule.silenced && before.current.has(rule.name))
    before.current = new Set(rules.filter((rule) => rule.silenced).map((rule) => rule.name))
    if (ended.length) {
      say(ended.map((rule) => `The silence of ${plain(rule.name)} has ended; it held back ${count(rule.held_back)} firings`).join('. '))
    }
  }, [rules, say])
}

/** Chips for parameters that the page does not understand; they are shown, never dropped silently. */
export function NotUnderstood({ route, known }: { route: Route; known: (name: string) => boolean }) {
  const wrong = route.params.names().filter((name) => !known(name))
  if (!wrong.length) return null
  return (
    <div class="bar">
      {wrong.map((name) => (
        <span class="chip wrong" key={name}>
          {plain(name)}: not understood
          <button type="button" aria-label={`remove ${plain(name)}`}
            onClick={() => go(address(route.page === 'rule' ? 'rule' : 'alerts', route.id, route.params.without(name)))}>×</button>
        </span>
      ))}
    </div>
  )
}

const EXAMPLES: [string, [string, string][]][] = [
  ['more than $5 in an hour', [['metric', 'total_cost'], ['threshold', '5'], ['window', '1h']]],
  ['more than $1 an hour for one user', [['metric', 'total_cost'], ['threshold', '1'], ['window', '1h'], ['groupby', 'user_id']]],
  ['over 5 % of calls fail', [['metric', 'error_rate'], ['threshold', '0.05'], ['window', '5m']]],
  ['calls take over 10 s (p95)', [['metric', 'latency_p95'], ['threshold', '10000'], ['window', '5m']]],
]

function NoRules() {
  return (
    <div class="empty">
      <p>There is no rule yet, so nothing is watched. A rule compares a metric with a threshold and tells a webhook, an Alertmanager
        or a subscriber when it is exceeded. Begin with one of these, see what it would have done, and change it:</p>
      <ul class="alerts-examples">
        {EXAMPLES.map(([text, params]) => <li key={text}><a href={address('alerts', '', [['new', '1'], ...params])}>{text}</a></li>)}
        <li><a href={address('alerts', '', [['new', '1']])}>an empty form</a></li>
      </ul>
      <p class="dim">Rules can also stand in <code>tokentrace.yml</code>, under <code>alerts</code>.</p>
    </div>
  )
}

function NewRule({ route }: { route: Route }) {
  const heading = useTitle('New rule', 'new')
  const { say } = useShared()
  // What was typed is not in the address, so it must not be lost when that changes.
  const [draft] = useState(() => prefilled(route.params))
  const from = route.params.names().filter((name) => DIMENSIONS.includes(name) || name.startsWith('attr.'))
  const created = (name: string) => {
    say(`Rule ${plain(name)} created`)
    askRules()
    go(address('rule', name))
  }
  return (
    <>
      <p><a href={address('alerts')}>‹ alerts</a></p>
      <h1 ref={heading} tabIndex={-1}>New rule</h1>
      <NotUnderstood route={route} known={isPrefill} />
      {from.length > 0 && <p class="dim">The filter is that of the page you came from.</p>}
      <RuleForm draft={draft} name={null} hidden={[]} saved={created} cancel={() => go(address('alerts'))} />
    </>
  )
}
