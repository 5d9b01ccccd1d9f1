// Whether a rule fires or cannot reach its receiver, in the header of every page.

import { count, plain } from '../core/format'
import { useAskedRules } from './rules'

/** How many names the hint lists. */
const MOST_NAMES = 10

export function AlertState() {
  const { data, error } = useAskedRules()
  if (!data) return error ? <span class="alerts-state" title={plain(error.message)}> ?<span class="unseen"> the state of the rules is not known</span></span> : null
  const firing = data.filter((rule) => rule.state === 'firing' && !rule.silenced)
  const dead = data.filter((rule) => rule.last_delivery?.outcome === 'dead')
  if (!firing.length && !dead.length) return null
  const isCritical = firing.some((rule) => rule.level === 'critical') || dead.length > 0
  const names = [...firing.map((rule) => `fires: ${plain(rule.name)}`), ...dead.map((rule) => `not delivered: ${plain(rule.name)}`)]
  const more = names.length - MOST_NAMES
  const hint = [...names.slice(0, MOST_NAMES), ...(more > 0 ? [`${count(more)} more`] : [])].join('\n')
  return (
    <span class={`alerts-state ${isCritical ? 'status-error' : 'status-pending'}`} title={hint}>
      {firing.length > 0 && <> ●{count(firing.length)}<span class="unseen"> {firing.length === 1 ? 'rule fires' : 'rules fire'}</span></>}
      {dead.length > 0 && <> ✕{count(dead.length)}<span class="unseen"> {dead.length === 1 ? 'rule reaches' : 'rules reach'} no receiver</span></>}
    </span>
  )
}
