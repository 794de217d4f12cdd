// A small plot: the loss of each logged step, and vertical lines where rounds begin.

export function plot(canvas, lines) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, (canvas.clientWidth * 110) / 236];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const points = lines.filter((line) => line.loss != null);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = style.getPropertyValue("--soft");
  if (points.length < 2) return;
  const last = points.at(-1).step;
  const most = Math.max(...points.map((line) => line.loss));
  const place = (line) => [30 + ((width - 34) * line.step) / last, height - 16 - ((height - 22) * line.loss) / most];
  context.strokeStyle = style.getPropertyValue("--line");
  points.forEach((line, number) => {
    if (number && line.round !== points[number - 1].round) {
      context.beginPath();
      context.moveTo(place(line)[0], 4);
      context.lineTo(place(line)[0], height - 16);
      context.stroke();
    }
  });
  context.beginPath();
  points.forEach((line) => context.lineTo(...place(line)));
  context.strokeStyle = style.getPropertyValue("--accent");
  context.lineWidth = 1.6;
  context.stroke();
  context.fillText(most.toFixed(1), 2, 12);
  context.fillText("0", 2, height - 16);
  context.textAlign = "right";
  context.fillText(`loss, ${last} steps`, width - 4, height - 3);
}
