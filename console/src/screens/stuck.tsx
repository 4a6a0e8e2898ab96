// Lanes that do not move, the oldest first.

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api } from "../api";
import { count } from "../format";
import type { WorkflowLane } from "../gen/weft/v1/workflow_service_pb";
import { useFilters } from "../router";
import { Empty, Failed, FilterInput, Head, Loading, Select } from "../ui/basics";
import { LaneActions, LaneTable, since } from "../ui/lanes";
import { laneState } from "../words";

const PAGE = 1000;
/** Lanes that are read to find the oldest. */
const READ_MAX = 5000;
/** Lanes that are shown. */
const SHOWN = 200;

const STATES = [
  ["", "Every state"],
  ["blocked", "Blocked"],
  ["waiting", "Waiting for a retry"],
  ["paused", "Paused"],
  ["away", "Receiver away"],
  ["held", "Held by the configuration"],
] as const;
const NOT_OPEN = ["blocked", "waiting", "paused", "away", "held"];

export function Stuck() {
  const [filters, setFilters] = useFilters(["state", "subscription", "workflow"] as const);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const found = useQuery({
    queryKey: ["lanes", filters],
    queryFn: async ({ signal }) => {
      const lanes: WorkflowLane[] = [];
      let pageToken = "";
      do {
        const states = (filters.state ? [filters.state] : NOT_OPEN).map(laneState.of);
        const page = await api.workflows.listLanes({ states, subscription: filters.subscription, workflowId: filters.workflow, pageSize: PAGE, pageToken }, { signal });
        lanes.push(...page.lanes);
        pageToken = page.nextPageToken;
      } while (pageToken && lanes.length < READ_MAX);
      const at = (lane: WorkflowLane) => since(lane)?.getTime() ?? Number.POSITIVE_INFINITY;
      return { lanes: lanes.sort((one, other) => at(one) - at(other)), more: pageToken !== "" };
    },
    refetchInterval: 3000,
    placeholderData: (previous) => previous,
  });
  const lanes = found.data?.lanes ?? [];
  const shown = lanes.slice(0, SHOWN);
  return (
    <>
      <Head title="Stuck" sub="Workflows that wait: for a retry, for an operator, or for their receiver. The longest first." />
      <div className="filters">
        <Select label="State" value={filters.state} onChange={(state) => setFilters({ state })} options={[...STATES]} />
        <FilterInput label="Subscription" value={filters.subscription} onChange={(subscription) => setFilters({ subscription })} />
        <FilterInput label="Workflow" value={filters.workflow} onChange={(workflow) => setFilters({ workflow })} className="grow" />
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Stuck lanes">
        {!found.data ? (
          <Loading of="the lanes" failed={found.error !== null} />
        ) : lanes.length === 0 ? (
          <Empty title={filters.state || filters.subscription || filters.workflow ? "No lane matches" : "Nothing is stuck"}>
            <p>A lane appears here when its event fails and waits for a retry, is blocked, or is paused.</p>
          </Empty>
        ) : (
          <>
            <div className="bulk">
              <span className="tabular">
                {count(lanes.length)}
                {found.data?.more && "+"} stuck{lanes.length > SHOWN && `, the ${SHOWN} longest shown`}
              </span>
              <LaneActions lanes={lanes} selected={selected} clear={() => setSelected(new Set())} />
            </div>
            <LaneTable lanes={shown} selected={selected} onSelected={setSelected} />
          </>
        )}
      </section>
    </>
  );
}
