// Screens and their filters are in the address, so that a link shows what its sender saw.

import { type AnchorHTMLAttributes, type MouseEvent, useCallback, useMemo, useSyncExternalStore } from "react";

const listeners = new Set<() => void>();

function subscribe(listener: () => void) {
  listeners.add(listener);
  window.addEventListener("popstate", listener);
  return () => {
    listeners.delete(listener);
    window.removeEventListener("popstate", listener);
  };
}

const current = () => location.pathname + location.search;

/** Opens a screen. `replace`: without an entry in the history, as for each letter of a filter. */
export function navigate(to: string, replace = false) {
  if (to === current()) return;
  history[replace ? "replaceState" : "pushState"](null, "", to);
  for (const listener of [...listeners]) listener();
  if (!replace) window.scrollTo(0, 0);
}

export function useLocation() {
  const at = useSyncExternalStore(subscribe, current);
  return useMemo(() => {
    const url = new URL(at, location.origin);
    return { path: url.pathname, search: url.searchParams };
  }, [at]);
}

/** The filters of a screen, read from the address and written to it. */
export function useFilters<Name extends string>(names: readonly Name[]) {
  const { path, search } = useLocation();
  const values = {} as Record<Name, string>;
  for (const name of names) values[name] = search.get(name) ?? "";
  const set = useCallback(
    (changes: Partial<Record<Name | string, string>>, replace = true) => {
      const next = new URLSearchParams(location.search);
      for (const [name, value] of Object.entries(changes)) {
        if (value) next.set(name, value);
        else next.delete(name);
      }
      const query = next.toString();
      navigate(query ? `${path}?${query}` : path, replace);
    },
    [path],
  );
  return [values, set] as const;
}

/** The address of a screen; empty filters are left out. */
export function to(path: string, filters: Record<string, string | undefined> = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(filters)) if (value) search.set(name, value);
  const query = search.toString();
  return query ? `${path}?${query}` : path;
}

export const eventPath = (id: string) => `/events/${encodeURIComponent(id)}`;
export const workflowPath = (id: string) => `/workflows/${encodeURIComponent(id)}`;
export const sourcePath = (name: string) => `/sources/${encodeURIComponent(name)}`;
export const subscriptionPath = (name: string) => `/subscriptions/${encodeURIComponent(name)}`;

type LinkProps = AnchorHTMLAttributes<HTMLAnchorElement> & { href: string };

export function Link({ href, onClick, ...rest }: LinkProps) {
  const click = (event: MouseEvent<HTMLAnchorElement>) => {
    onClick?.(event);
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    if (event.defaultPrevented || !plain) return;
    event.preventDefault();
    navigate(href);
  };
  return <a href={href} onClick={click} {...rest} />;
}
