// The shards of the log, and who owns them.

import { useQuery } from "@tanstack/react-query";
import { api } from "../api";
import { count, dateOf } from "../format";
import { useSession } from "../session";
import { Streams, useStats } from "./traffic";
import { Age, Badge, Empty, Failed, Head, Loading, Status, Text, Time } from "../ui/basics";
import { ShardState } from "../gen/weft/v1/shard_service_pb";
import { shardState } from "../words";

export function useShards(enabled = true) {
  return useQuery({ queryKey: ["shards"], queryFn: () => api.shards.listShards({}), refetchInterval: 2000, enabled });
}

export function Cluster() {
  const { isLimited } = useSession();
  const found = useShards(!isLimited);
  const { stats } = useStats(60, !isLimited);
  const shards = found.data?.shards ?? [];
  const stopped = shards.filter((shard) => shard.state === ShardState.STOPPED);
  return (
    <>
      <Head title="Cluster" sub="Shards of the log and the workers that own them." />
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      {stopped.map((shard) => (
        <div className="note-box bad" role="alert" key={shard.shard}>
          <div className="wrap">
            <strong>Shard {shard.shard} has stopped: </strong>
            <Text>{shard.problem}</Text>. See <code>weft shard adopt</code>.
          </div>
        </div>
      ))}
      <section className="panel" aria-label="Shards">
        {isLimited ? (
          <Empty title="Your key is limited to some sources or workflows">
            <p>Shards concern all of them.</p>
          </Empty>
        ) : !found.data ? (
          <Loading of="shards" failed={found.error !== null} />
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Shards">
            <table>
              <thead>
                <tr>
                  <th className="num">Shard</th>
                  <th>State</th>
                  <th>Owner</th>
                  <th className="num">Epoch</th>
                  <th className="num">Events</th>
                  <th className="num">Behind</th>
                  <th className="num">Commands</th>
                  <th>Committed up to</th>
                  <th>Log created</th>
                </tr>
              </thead>
              <tbody>
                {shards.map((shard) => {
                  const behind = shard.eventsLast - (shard.eventsCommitted?.sequence ?? 0n);
                  return (
                    <tr key={shard.shard}>
                      <td className="num">{shard.shard}</td>
                      <td>
                        <Status of={shardState.word(shard.state)} />
                      </td>
                      <td>{shard.worker ? <code><Text>{shard.worker}</Text></code> : <Badge tone="warn">none</Badge>}</td>
                      <td className="num">{count(shard.epoch)}</td>
                      <td className="num">{count(shard.eventsLast)}</td>
                      <td className="num">{behind > 0n ? <Badge tone={behind > 10_000n ? "bad" : "info"}>{count(behind)}</Badge> : <span className="dim">0</span>}</td>
                      <td className="num">{count(shard.commandsLast)}</td>
                      <td>
                        <Age at={dateOf(shard.eventsCommitted?.storedAt)} /> <span className="dim">old</span>
                      </td>
                      <td>
                        <Time at={dateOf(shard.eventsCommitted?.createdAt)} />
                      </td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        )}
      </section>
      {stats && <Streams stats={stats} />}
    </>
  );
}
