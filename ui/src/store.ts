// A value that can be watched, and the hook by which a component does.

import { useEffect, useState } from "preact/hooks";

export class Store<T> {
  #watchers = new Set<() => void>();
  #due = false;

  constructor(public value: T) {}

  set(value: T): void {
    if (Object.is(value, this.value)) return;
    this.value = value;
    this.#tell();
  }

  /** Sets it, and tells of it with the next picture: for what may come faster than it can be drawn. */
  stream(value: T): void {
    this.value = value;
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#tell();
    });
  }

  #tell(): void {
    for (const watcher of [...this.#watchers]) watcher();
  }

  watch(watcher: () => void): () => void {
    this.#watchers.add(watcher);
    return () => void this.#watchers.delete(watcher);
  }
}

export function useStore<T>(store: Store<T>): T {
  const [, redraw] = useState({});
  useEffect(() => {
    // It may have changed between drawing and this.
    redraw({});
    return store.watch(() => redraw({}));
  }, [store]);
  return store.value;
}
