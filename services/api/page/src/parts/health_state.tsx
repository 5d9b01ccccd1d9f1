// Whether a part of the pipeline is unwell, in the header of every page.

import './health_state.css'
import { plain } from '../core/format'
import { SIGNS, verdictOf } from '../core/health'
import { useShared } from './app'
import { useHealth } from './health_feed'

const WORDS = { ok: 'works', warning: 'has warnings', bad: 'is unwell', unknown: 'is not known' } as const

export function HealthState() {
  const { about } = useShared()
  const { health, error } = useHealth(`.${about?.paths.health ?? '/health'}`)
  // A pipeline that does not answer now is not well because it was a minute ago.
  const verdict = verdictOf(error ? error.message : health)
  return (
    <span class={`health-state level-${verdict.level}`} title={plain(verdict.text)}>
      {' '}<span aria-hidden="true">{SIGNS[verdict.level]}</span><span class="unseen"> {WORDS[verdict.level]}</span>
    </span>
  )
}
