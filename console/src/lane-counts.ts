// How many lanes and dead letters each subscription has.

import { useQuery } from "@tanstack/react-query";
import { api } from "./api";
import { DeadLetterStatus } from "./gen/weft/v1/status_pb";
import { LaneState } from "./gen/weft/v1/workflow_service_pb";
import { laneState } from "./words";

const READ_MAX = 10_000;
const STUCK = [LaneState.BLOCKED, LaneState.WAITING, LaneState.PAUSED, LaneState.AWAY, LaneState.HELD];

export function useLaneCounts() {
  const lanes = useQuery({
    queryKey: ["lanes", "by-subscription"],
    queryFn: async ({ signal }) => {
      const sums = new Map<string, Record<string, number>>();
      let [pageToken, read] = ["", 0];
      do {
        const page = await api.workflows.listLanes({ states: STUCK, pageSize: 1000, pageToken }, { signal });
        for (const { subscription, state } of page.lanes) {
          const own = sums.get(subscription) ?? {};
          own[laneState.word(state)] = (own[laneState.word(state)] ?? 0) + 1;
          sums.set(subscription, own);
        }
        read += page.lanes.length;
        pageToken = page.nextPageToken;
      } while (pageToken && read < READ_MAX);
      return sums;
    },
    refetchInterval: 4000,
  });
  const letters = useQuery({
    queryKey: ["dead-letter-stats", "open"],
    queryFn: () => api.deadLetters.deadLetterStats({ filter: { statuses: [DeadLetterStatus.OPEN] } }),
    refetchInterval: 5000,
  });
  const total = (state: "waiting" | "blocked") => {
    if (!lanes.data) return undefined;
    const of = (own: Record<string, number>) => (own[state] ?? 0) + (state === "waiting" ? (own.away ?? 0) : 0);
    return [...lanes.data.values()].reduce((sum, own) => sum + of(own), 0);
  };
  const of = (name: string) => ({
    waiting: lanes.data && (lanes.data.get(name)?.waiting ?? 0) + (lanes.data.get(name)?.away ?? 0),
    blocked: lanes.data && (lanes.data.get(name)?.blocked ?? 0),
    deadLetters: letters.data && Number(letters.data.counts.filter((each) => each.subscription === name).reduce((sum, each) => sum + each.count, 0n)),
  });
  return { of, total };
}
