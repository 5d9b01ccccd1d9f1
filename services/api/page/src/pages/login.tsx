import { useState } from 'preact/hooks'
import { ApiError, send } from '../api/client'
import { plain } from '../core/format'
import type { Route } from '../core/route'
import { go, useTitle } from '../parts/app'
import { Note } from '../parts/states'

export function Login({ route, entered }: { route: Route; entered: () => void }) {
  const heading = useTitle('Log in', 'login')
  const [token, setToken] = useState('')
  const [problem, setProblem] = useState('')
  const enter = async (event: Event) => {
    event.preventDefault()
    try {
      await send('POST', './session', { token })
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      setProblem(error.message)
      return
    }
    const next = route.params.get('next') ?? ''
    entered()
    go(next.startsWith('#/') && !next.startsWith('#/login') ? next : '#/', true)
  }
  return (
    <form class="login" onSubmit={(event) => void enter(event)}>
      <h1 ref={heading} tabIndex={-1}>Log in</h1>
      <p>This server needs a token: the value of <code>http_server.auth_token</code>.</p>
      <label for="token">Token</label>
      <input id="token" type="password" autocomplete="current-password" required value={token}
        onInput={(event) => setToken(event.currentTarget.value)} />
      <button type="submit">Log in</button>
      {problem && <Note kind="error" text={plain(problem)} />}
    </form>
  )
}
