// The parameters of an address, in their order. A name may stand there more than once.

export type Pair = readonly [string, string]

export class Params implements Iterable<Pair> {
  private readonly pairs: readonly Pair[]

  constructor(pairs: Iterable<Pair> = []) {
    this.pairs = [...pairs]
  }

  [Symbol.iterator](): Iterator<Pair> {
    return this.pairs[Symbol.iterator]()
  }

  /** The first value of *name*. */
  get(name: string): string | undefined {
    return this.pairs.find(([each]) => each === name)?.[1]
  }

  /** All values of *name*. */
  all(name: string): string[] {
    return this.pairs.filter(([each]) => each === name).map(([, value]) => value)
  }

  has(name: string): boolean {
    return this.pairs.some(([each]) => each === name)
  }

  /** Every name once, in the order in which they first stand there. */
  names(): string[] {
    return [...new Set(this.pairs.map(([name]) => name))]
  }

  /** With *changes*: each name gets one value, at its first place or at the end; null removes it. */
  with(changes: Readonly<Record<string, string | null>>): Params {
    const missing = new Set(Object.keys(changes))
    const kept = this.pairs.flatMap(([name, value]): Pair[] => {
      if (!Object.hasOwn(changes, name)) return [[name, value]]
      const changed = changes[name]
      if (changed === null || changed === undefined || !missing.delete(name)) return []
      return [[name, changed]]
    })
    const added = Object.entries(changes).filter((pair): pair is [string, string] => missing.has(pair[0]) && pair[1] !== null)
    return new Params([...kept, ...added.filter(([name]) => !this.has(name))])
  }

  /** With one more value of *name*; the same if it is there already. */
  plus(name: string, value: string): Params {
    return this.all(name).includes(value) ? this : new Params([...this.pairs, [name, value]])
  }

  /** Without *name*, or without one value of it. */
  without(name: string, value?: string): Params {
    return new Params(this.pairs.filter((pair) => pair[0] !== name || (value !== undefined && pair[1] !== value)))
  }
}
