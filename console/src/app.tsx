import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Component, lazy, type ReactNode, Suspense, useCallback, useEffect, useRef, useState } from "react";
import { api, currentOperator, onSessionLost, type Operator, signOut } from "./api";
import { Jobs } from "./jobs";
import { Shortcuts } from "./keys";
import { Link, useLocation } from "./router";
import { Session, SignIn, useSession } from "./session";
import { applyTheme, chooseTheme, chosenTheme, type Theme } from "./theme";
import { Badge, Empty, Failed, Loading } from "./ui/basics";
import { shortCount } from "./format";
import { Overview } from "./screens/overview";
import { DeadLetterStatus } from "./gen/weft/v1/status_pb";
import { LaneState } from "./gen/weft/v1/workflow_service_pb";

interface Screen {
  /** Matched against the path; its group is the argument. */
  path: RegExp;
  title: string;
  show: (argument: string) => ReactNode;
}

const Stream = lazy(async () => ({ default: (await import("./screens/stream")).Stream }));
const EventScreen = lazy(async () => ({ default: (await import("./screens/event")).EventScreen }));
const Workflow = lazy(async () => ({ default: (await import("./screens/workflow")).Workflow }));
const DeadLetters = lazy(async () => ({ default: (await import("./screens/dead-letters")).DeadLetters }));
const Stuck = lazy(async () => ({ default: (await import("./screens/stuck")).Stuck }));
const Subscriptions = lazy(async () => ({ default: (await import("./screens/subscriptions")).Subscriptions }));
const Subscription = lazy(async () => ({ default: (await import("./screens/subscription")).Subscription }));
const Sources = lazy(async () => ({ default: (await import("./screens/sources")).Sources }));
const Source = lazy(async () => ({ default: (await import("./screens/source")).Source }));
const Keys = lazy(async () => ({ default: (await import("./screens/api-keys")).Keys }));
const Schemas = lazy(async () => ({ default: (await import("./screens/schemas")).Schemas }));
const Rejected = lazy(async () => ({ default: (await import("./screens/rejected")).Rejected }));
const RejectedRequest = lazy(async () => ({ default: (await import("./screens/rejected")).RejectedRequest }));
const Replays = lazy(async () => ({ default: (await import("./screens/replays")).Replays }));
const Replay = lazy(async () => ({ default: (await import("./screens/replays")).Replay }));
const Alerts = lazy(async () => ({ default: (await import("./screens/alerts")).Alerts }));
const Audit = lazy(async () => ({ default: (await import("./screens/audit")).Audit }));
const Cluster = lazy(async () => ({ default: (await import("./screens/cluster")).Cluster }));

const SCREENS: Screen[] = [
  { path: /^\/$/, title: "Overview", show: () => <Overview /> },
  { path: /^\/stream$/, title: "Stream", show: () => <Stream /> },
  { path: /^\/events\/(.+)$/, title: "Event", show: (id) => <EventScreen id={id} key={id} /> },
  { path: /^\/workflows\/(.+)$/, title: "Workflow", show: (id) => <Workflow id={id} key={id} /> },
  { path: /^\/dead-letters$/, title: "Dead letters", show: () => <DeadLetters /> },
  { path: /^\/stuck$/, title: "Stuck", show: () => <Stuck /> },
  { path: /^\/subscriptions$/, title: "Subscriptions", show: () => <Subscriptions /> },
  { path: /^\/subscriptions\/(.+)$/, title: "Subscription", show: (name) => <Subscription name={name} key={name} /> },
  { path: /^\/sources$/, title: "Sources", show: () => <Sources /> },
  { path: /^\/sources\/(.+)$/, title: "Source", show: (name) => <Source name={name} key={name} /> },
  { path: /^\/keys$/, title: "Keys", show: () => <Keys /> },
  { path: /^\/schemas$/, title: "Schemas", show: () => <Schemas /> },
  { path: /^\/rejected$/, title: "Rejected", show: () => <Rejected /> },
  { path: /^\/rejected\/(.+)$/, title: "Rejected request", show: (id) => <RejectedRequest id={id} key={id} /> },
  { path: /^\/replays$/, title: "Replays", show: () => <Replays /> },
  { path: /^\/replays\/(.+)$/, title: "Replay", show: (id) => <Replay id={id} key={id} /> },
  { path: /^\/alerts$/, title: "Alerts", show: () => <Alerts /> },
  { path: /^\/audit$/, title: "Audit", show: () => <Audit /> },
  { path: /^\/cluster$/, title: "Cluster", show: () => <Cluster /> },
];

/** Screens of what concerns all sources and workflows: a key that is limited to some cannot read it. */
const OF_ALL = ["/replays", "/subscriptions", "/sources", "/schemas", "/keys", "/alerts", "/audit", "/cluster"];
const NAVIGATION: [string, [string, string][]][] = [
  ["", [["/", "Overview"], ["/stream", "Stream"]]],
  ["Trouble", [["/dead-letters", "Dead letters"], ["/stuck", "Stuck"], ["/rejected", "Rejected"], ["/replays", "Replays"]]],
  ["Catalog", [["/subscriptions", "Subscriptions"], ["/sources", "Sources"], ["/schemas", "Schemas"], ["/keys", "Keys"]]],
  ["Mesh", [["/alerts", "Alerts"], ["/audit", "Audit"], ["/cluster", "Cluster"]]],
];

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function App() {
  const queries = useQueryClient();
  const [operator, setOperator] = useState<Operator | null>();
  const [ended, setEnded] = useState(false);
  const [error, setError] = useState<unknown>();
  const load = useCallback(() => {
    setError(undefined);
    currentOperator().then(setOperator, setError);
  }, []);
  useEffect(() => {
    load();
    onSessionLost(() => {
      setEnded(true);
      setOperator(null);
    });
  }, [load]);
  if (error !== undefined) {
    return (
      <main>
        <Failed error={error} retry={load} />
      </main>
    );
  }
  if (operator === undefined) return <Loading of="the console" />;
  if (operator === null) {
    return (
      <SignIn
        ended={ended}
        onSignedIn={(signedIn) => {
          queries.clear();
          setEnded(false);
          setOperator(signedIn);
        }}
      />
    );
  }
  const leave = async () => {
    try {
      await signOut();
    } catch (failure) {
      setError(failure);
      return;
    }
    queries.clear();
    setOperator(null);
  };
  return (
    <Session.Provider value={operator}>
      <Frame leave={leave} />
    </Session.Provider>
  );
}

/** A screen that fails, or whose file is of an earlier version, leaves the others usable. */
class Boundary extends Component<{ children: ReactNode }, { error?: unknown }> {
  state: { error?: unknown } = {};

  static getDerivedStateFromError(error: unknown) {
    return { error };
  }

  render() {
    const { error } = this.state;
    return error === undefined ? this.props.children : <Failed error={error} retry={() => location.reload()} />;
  }
}

function Frame({ leave }: { leave: () => void }) {
  const { path } = useLocation();
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  const found = SCREENS.map((screen) => ({ screen, match: path.match(screen.path) })).find(({ match }) => match);
  const argument = decoded(found?.match?.[1] ?? "");
  const title = found?.screen.title ?? "Not found";
  useEffect(() => {
    document.title = argument ? `${argument} – ${title} – Weft` : `${title} – Weft`;
    // A screen reader, and the keyboard, begin at the new screen.
    if (!first.current) main.current?.focus({ preventScroll: true });
    first.current = false;
  }, [argument, title]);
  return (
    <div className="frame">
      <a className="skip" href="#main">
        Skip to the content
      </a>
      <Navigation path={path} leave={leave} />
      <main id="main" ref={main} tabIndex={-1}>
        <Boundary key={path}>
          <Suspense fallback={<Loading of={title.toLowerCase()} />}>
            {found?.screen.show(argument) ?? (
              <Empty title="There is no such screen">
                <Link href="/">Go to the overview</Link>
              </Empty>
            )}
          </Suspense>
        </Boundary>
      </main>
      <Jobs />
      <Shortcuts />
    </div>
  );
}

function Navigation({ path, leave }: { path: string; leave: () => void }) {
  const { operator, isLimited } = useSession();
  const [open, setOpen] = useState(false);
  const [theme, setTheme] = useState<Theme>(chosenTheme);
  // biome-ignore lint: the menu closes when a screen is opened
  useEffect(() => setOpen(false), [path]);
  const next: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
  const counts = useCounts();
  return (
    <nav className="nav" aria-label="Screens" data-open={open}>
      <div className="bar">
        <Link href="/" className="brand">
          <img src="/icon.svg" alt="" />
          Weft
        </Link>
        <button type="button" className="menu" aria-expanded={open} onClick={() => setOpen(!open)}>
          Menu
        </button>
      </div>
      <div className="items">
        {NAVIGATION.map(([group, all]) => [group, all.filter(([path]) => !isLimited || !OF_ALL.includes(path))] as const).map(([group, items]) => (
          <div key={group} hidden={items.length === 0}>
            {group && <div className="group">{group}</div>}
            {items.map(([href, title]) => {
              const here = href === "/" ? path === "/" : path === href || path.startsWith(`${href}/`);
              return (
                <Link key={href} href={href} className="item" aria-current={here ? "page" : undefined}>
                  {title}
                  {counts[href]}
                </Link>
              );
            })}
          </div>
        ))}
        <div className="foot">
          <div className="who wrap">
            Signed in as <strong>{operator.operator}</strong>
            <br />
            {operator.scopes.includes("admin") ? "may do everything" : operator.scopes.join(", ")}
          </div>
          <div className="tools">
            <button
              type="button"
              className="plain small"
              title="Colours: as the system, light, dark"
              onClick={() => {
                chooseTheme(next[theme]);
                setTheme(next[theme]);
                applyTheme();
              }}
            >
              Theme: {theme}
            </button>
            <button type="button" className="plain small" onClick={leave}>
              Sign out
            </button>
          </div>
        </div>
      </div>
    </nav>
  );
}

/** What waits for an operator, next to the screen where it is seen. */
function useCounts(): Record<string, ReactNode> {
  const letters = useQuery({
    queryKey: ["dead-letter-stats", "open"],
    queryFn: () => api.deadLetters.deadLetterStats({ filter: { statuses: [DeadLetterStatus.OPEN] } }),
    refetchInterval: 5000,
  });
  const stuck = useQuery({
    queryKey: ["lanes", "count"],
    queryFn: () => api.workflows.listLanes({ states: [LaneState.BLOCKED], pageSize: 1000 }),
    refetchInterval: 5000,
  });
  const open = letters.data?.counts.reduce((sum, each) => sum + each.count, 0n) ?? 0n;
  const blocked = stuck.data?.lanes.length ?? 0;
  return {
    "/dead-letters": open > 0n && (
      <Badge tone="bad" title={`${open} open dead letters`}>
        {shortCount(open)}
        {letters.data?.truncated && "+"}
      </Badge>
    ),
    "/stuck": blocked > 0 && (
      <Badge tone="bad" title={`${blocked} blocked lanes`}>
        {shortCount(blocked)}
        {stuck.data?.nextPageToken && "+"}
      </Badge>
    ),
  };
}
