import { render, type ComponentType } from 'preact'
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks'
import { getJson, send } from './api/client'
import type { About } from './api/types'
import { plain } from './core/format'
import { keysOf, type Context, type Place } from './core/keys'
import { address, type Page, type Route } from './core/route'
import { offset } from './core/time'
import { AlertState } from './parts/alert_state'
import {
  go, isShownZone, localZone, logIn, SharedContext, undoZoom, useAnswer, useKept, useKeys, useRoute, useTitle, type Theme,
} from './parts/app'
import { HealthState } from './parts/health_state'
import { hasRange, moveRange, RangeChoice, rangeParams, refreshOf } from './parts/range'
import { State } from './parts/states'
import { Alerts } from './pages/alerts'
import { Calls } from './pages/calls'
import { Compare } from './pages/compare'
import { Health } from './pages/health'
import { Login } from './pages/login'
import { MetricPage } from './pages/metric'
import { Overview } from './pages/overview'
import { RulePage } from './pages/rule'
import { SessionPage } from './pages/session'
import { Sessions } from './pages/sessions'
import { TracePage } from './pages/trace'
import { Traces } from './pages/traces'

const PAGES: Record<Exclude<Page, 'login'>, ComponentType<{ route: Route }>> = {
  overview: Overview,
  metric: MetricPage,
  traces: Traces,
  trace: TracePage,
  calls: Calls,
  compare: Compare,
  sessions: Sessions,
  session: SessionPage,
  alerts: Alerts,
  rule: RulePage,
  health: Health,
  missing: Missing,
}
/** Links of the header: the page, and the pages below it. */
const LINKS = [
  ['overview', 'Overview', ['metric']], ['traces', 'Traces', ['trace', 'calls']], ['compare', 'Compare', []],
  ['sessions', 'Sessions', ['session']], ['alerts', 'Alerts', ['rule']], ['health', 'Health', []],
] as const
const STATES: Partial<Record<Page, ComponentType>> = { alerts: AlertState, health: HealthState }
const CONTEXTS: Partial<Record<Page, Context>> = { overview: 'overview', calls: 'calls', traces: 'traces', sessions: 'list', alerts: 'list', trace: 'trace', session: 'trace' }
const THEMES = ['auto', 'light', 'dark']
const ZONES = ['local', 'UTC', ...Intl.supportedValuesOf('timeZone').filter((zone) => zone !== 'UTC')]

function App() {
  const route = useRoute()
  const [zoneName, keepZone] = useKept('zone', 'local', isShownZone)
  const [theme, keepTheme] = useKept('theme', 'auto', (value) => THEMES.includes(value))
  const [said, setSaid] = useState('')
  const [live, setLive] = useState(true)
  const dialog = useRef<HTMLDialogElement>(null)
  const isLogin = route.page === 'login'
  const about = useAnswer(isLogin ? null : 'about', (options) => getJson<About>('./page.json', options))
  useEffect(() => {
    if (theme === 'auto') delete document.documentElement.dataset.theme
    else document.documentElement.dataset.theme = theme
  }, [theme])
  // In a narrow window the links scroll sideways. Only they are moved, because the page has a place of its own.
  const nav = useRef<HTMLElement>(null)
  useLayoutEffect(() => {
    const links = nav.current!
    const watcher = new ResizeObserver(() => {
      // Links get wider when the states beside their names are known.
      const here = links.querySelector<HTMLElement>('[aria-current]')
      if (here) links.scrollLeft = here.offsetLeft - 60
    })
    for (const link of links.children) watcher.observe(link)
    return () => watcher.disconnect()
  }, [route.page])
  const zone = zoneName === 'local' ? localZone() : zoneName
  const say = useCallback((text: string) => setSaid(text), [])
  const context = CONTEXTS[route.page] ?? 'page'
  useKeys(context, (action) => {
    if (action.startsWith('go:')) return go(addressOf(action.slice(3) as Place, route)), true
    switch (action) {
      case 'help': return dialog.current?.showModal(), true
      case 'filter': return focus('filter')
      case 'range': return focus('range')
      case 'older': return moveRange(route, -1)
      case 'newer': return moveRange(route, 1)
      case 'undoZoom': return undoZoom()
      case 'live': return setLive(!live), say(live ? 'Not live' : 'Live'), true
      case 'copy':
        // A browser has a clipboard on https and on this machine only.
        if (!navigator.clipboard) return say('The browser lets no page copy here; copy the address bar.'), true
        return void navigator.clipboard.writeText(location.href).then(() => say('Link copied'), () => say('The browser refused to copy')), true
      default: return false
    }
  })
  const logOut = async () => {
    await send('DELETE', './session')
    logIn()
  }
  const refreshMs = refreshOf(route, live)
  const shared = useMemo(
    () => ({ about: about.data, zone, theme: theme as Theme, say, live, setLive, refreshMs }),
    [about.data, zone, theme, say, live, refreshMs],
  )
  const Shown = isLogin ? null : PAGES[route.page as Exclude<Page, 'login'>]
  return (
    <SharedContext.Provider value={shared}>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.querySelector('main')?.focus() }}>to the content</a>
      {/* A browser leaves what is half in view where it is. */}
      <header onFocusIn={(event) => (event.target as Element).scrollIntoView({ block: 'nearest', inline: 'nearest' })}>
        <strong class="brand">tokentrace</strong>
        <nav aria-label="Pages" ref={nav}>
          {LINKS.map(([page, name, below]) => {
            const Said = isLogin || !about.data ? undefined : STATES[page]
            const isHere = route.page === page || (below as readonly Page[]).includes(route.page)
            return <a key={page} href={addressOf(page, route)} aria-current={isHere ? 'page' : undefined}>{name}{Said && <Said />}</a>
          })}
          <a href="./docs">API</a>
        </nav>
        <div class="tools">
          {hasRange(route.page) && <RangeChoice route={route} />}
          <label class="unseen" for="zone">zone</label>
          <select id="zone" value={zoneName} onChange={(event) => keepZone(event.currentTarget.value)} title={zone}>
            {ZONES.map((name) => <option key={name} value={name}>{name === 'local' ? `${offset(Date.now(), localZone())} local` : name}</option>)}
          </select>
          <label class="unseen" for="theme">theme</label>
          <select id="theme" value={theme} onChange={(event) => keepTheme(event.currentTarget.value)}>
            {THEMES.map((name) => <option key={name}>{name}</option>)}
          </select>
          <button type="button" aria-label="keys" onClick={() => dialog.current?.showModal()}>?</button>
          {about.data?.token_needed && !isLogin && <button type="button" onClick={() => void logOut()}>Log out</button>}
        </div>
      </header>
      <main tabIndex={-1}>
        {!Shown ? <Login route={route} entered={() => say('Logged in')} />
          : about.data ? <Shown key={`${route.page}/${route.id}`} route={route} /> : <State answer={about} />}
      </main>
      <p class="dim" role="status" aria-live="polite">{said}</p>
      <dialog ref={dialog} aria-label="Keys">
        <dl>{keysOf(context).map(([key, text]) => [<dt key={key + text}><kbd>{key}</kbd></dt>, <dd key={`${key}=${text}`}>{text}</dd>])}</dl>
        <form method="dialog"><button>close</button></form>
      </dialog>
    </SharedContext.Provider>
  )
}

/** The address of a page, with the range that is shown now if that page has one. */
function addressOf(page: Place, route: Route): string {
  return address(page, '', hasRange(page) ? Object.entries(rangeParams(route)) : [])
}

function focus(id: string): boolean {
  const element = document.getElementById(id)
  element?.focus()
  return element !== null
}

function Missing({ route }: { route: Route }) {
  const heading = useTitle('No such page', route.id)
  return (
    <>
      <h1 ref={heading} tabIndex={-1}>There is no page “{plain(route.id)}”</h1>
      <p><a href={address('overview')}>Overview</a></p>
    </>
  )
}

render(<App />, document.getElementById('app')!)
