// Lines over time.

import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export interface Line {
  label: string;
  /** Name of a colour of the theme. */
  color: "accent" | "good" | "warn" | "bad" | "info";
  values: (number | null)[];
}

interface Props {
  label: string;
  /** Unix seconds. */
  times: number[];
  lines: Line[];
  format: (value: number) => string;
  /** The scale reaches at least so far, so that no line of zeros fills it. */
  least: number;
  height?: number;
}

/** Values between two gaps, which no line shows. */
function isolated(plot: uPlot, series: number, show: boolean | undefined): number[] | null {
  const values = plot.data[series];
  if (show || !values) return null;
  return [...values.keys()].filter((at) => values[at] != null && values[at - 1] == null && values[at + 1] == null);
}

const color = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function Chart({ label, times, lines, format, least, height = 180 }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  const shape = lines.map((line) => `${line.label}:${line.color}`).join();
  const data = useRef<uPlot.AlignedData>([times]);
  data.current = [times, ...lines.map((line) => line.values)];
  const formatted = useRef(format);
  formatted.current = format;

  // biome-ignore lint: the shape holds what the options need
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const make = () => {
      plot.current?.destroy();
      const axis = { stroke: color("dim"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
      plot.current = new uPlot(
        {
          width: element.clientWidth,
          height,
          legend: { show: false },
          cursor: { y: false, points: { size: 6 } },
          scales: { y: { range: (_, __, max) => [0, Math.max(max * 1.1, least)] } },
          axes: [{ ...axis, size: 38 }, { ...axis, size: 54, values: (_, splits) => splits.map((split) => formatted.current(split)) }],
          series: [{}, ...lines.map((line) => ({ label: line.label, stroke: color(line.color), width: 1.75, points: { size: 5, filter: isolated } }))],
        },
        data.current,
        element,
      );
    };
    make();
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    window.addEventListener("weft-theme", make);
    return () => {
      observer.disconnect();
      window.removeEventListener("weft-theme", make);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape, height, least]);
  // biome-ignore lint: new data is drawn
  useEffect(() => {
    plot.current?.setData(data.current);
  }, [times, lines]);

  const last = lines.map((line) => line.values.at(-1));
  return (
    <div className="stack">
      <div className="legend">
        {lines.map((line, at) => (
          <span key={line.label}>
            <i className={`swatch ${line.color}`} />
            {line.label} <span className="tabular">{last[at] == null ? "–" : format(last[at])}</span>
          </span>
        ))}
      </div>
      <div ref={box} className="chart" style={{ height }} role="img" aria-label={`${label}: ${lines.map((line, at) => `${line.label} ${last[at] == null ? "none" : format(last[at] as number)}`).join(", ")}`} />
    </div>
  );
}
