// The canvas: layers (picture, prediction, uncertainty, strokes) under one zoom and pan.

const rgb = (colour) => [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));

function layer(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas.getContext("2d");
}

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.opacity = { ink: 0.9, prediction: 0.45, entropy: 0 };
    this.colours = [];
    this.picture = null;
    this.pointer = null; // [x, y] in pixels of the picture, and the brush's width
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  show(bitmap) {
    this.picture = bitmap;
    this.ink = layer(bitmap.width, bitmap.height);
    this.found = null;
    this.fit();
  }

  // Shows the whole picture.
  fit() {
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (this.picture) {
      const { width, height } = this.picture;
      this.scale = 0.96 * Math.min(this.canvas.width / width, this.canvas.height / height);
      this.offset = [(this.canvas.width - this.scale * width) / 2, (this.canvas.height - this.scale * height) / 2];
    }
    this.draw();
  }

  zoom(factor, x, y) {
    const ratio = devicePixelRatio;
    const scale = Math.min(40, Math.max(0.05, this.scale * factor));
    this.offset = [x * ratio, y * ratio].map((place, axis) => place - ((place - this.offset[axis]) * scale) / this.scale);
    this.scale = scale;
    this.draw();
  }

  pan(x, y) {
    this.offset = [this.offset[0] + x * devicePixelRatio, this.offset[1] + y * devicePixelRatio];
    this.draw();
  }

  // A place of the page in pixels of the picture.
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * devicePixelRatio - this.offset[0]) / this.scale,
      ((event.clientY - box.top) * devicePixelRatio - this.offset[1]) / this.scale,
    ];
  }

  // Draws all strokes again.
  setStrokes(strokes) {
    this.ink.clearRect(0, 0, this.picture.width, this.picture.height);
    for (const stroke of strokes) this.addStroke(stroke);
    this.draw();
  }

  addStroke(stroke) {
    const ink = this.ink;
    const erases = stroke.class === 255;
    ink.globalCompositeOperation = erases ? "destination-out" : "source-over";
    ink.fillStyle = ink.strokeStyle = erases ? "#000" : this.colours[stroke.class] || "#fff";
    if (stroke.kind === "region") {
      const width = this.picture.width;
      for (let place = 0; place < stroke.runs.length; place += 2) {
        let start = stroke.runs[place];
        const end = start + stroke.runs[place + 1];
        while (start < end) {
          const row = Math.floor(start / width);
          const length = Math.min(end, (row + 1) * width) - start;
          ink.fillRect(start - row * width, row, length, 1);
          start += length;
        }
      }
    } else {
      this.line(stroke.points, stroke.width);
    }
    ink.globalCompositeOperation = "source-over";
  }

  line(points, width) {
    const ink = this.ink;
    ink.lineCap = ink.lineJoin = "round";
    ink.lineWidth = width;
    ink.beginPath();
    ink.moveTo(...points[0]);
    for (const point of points.length > 1 ? points.slice(1) : points) ink.lineTo(...point);
    ink.stroke();
  }

  setPrediction(found) {
    this.found = found;
    this.colourPrediction();
    this.draw();
  }

  colourPrediction() {
    this.layers = null;
    if (!this.found) return;
    const { width, height, classes, entropy } = this.found;
    const [areas, doubts] = [layer(width, height), layer(width, height)];
    const [area, doubt] = [areas.createImageData(width, height), doubts.createImageData(width, height)];
    const table = new Uint32Array(256);
    this.colours.forEach((colour, number) => {
      const [red, green, blue] = rgb(colour);
      table[number] = (255 << 24) | (blue << 16) | (green << 8) | red;
    });
    const [areaPixels, doubtPixels] = [area, doubt].map((image) => new Uint32Array(image.data.buffer));
    for (let place = 0; place < classes.length; place += 1) {
      areaPixels[place] = table[classes[place]];
      doubtPixels[place] = (entropy[place] << 24) | 0x7800ff; // pink
    }
    areas.putImageData(area, 0, 0);
    doubts.putImageData(doubt, 0, 0);
    this.layers = { prediction: areas.canvas, entropy: doubts.canvas };
  }

  // Draws soon, once for all calls before the next frame.
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const { context, canvas, picture } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.fillStyle = getComputedStyle(canvas.parentElement).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!picture) return;
    context.setTransform(this.scale, 0, 0, this.scale, ...this.offset);
    context.imageSmoothingEnabled = this.scale < 3;
    context.drawImage(picture, 0, 0);
    for (const name of ["prediction", "entropy"]) {
      if (this.layers && this.opacity[name]) {
        context.globalAlpha = this.opacity[name];
        context.drawImage(this.layers[name], 0, 0, picture.width, picture.height);
      }
    }
    context.globalAlpha = this.opacity.ink;
    context.drawImage(this.ink.canvas, 0, 0);
    context.globalAlpha = 1;
    if (this.pointer) {
      const [x, y, width] = this.pointer;
      context.beginPath();
      context.arc(x, y, width / 2, 0, 2 * Math.PI);
      for (const [colour, line] of [["#000a", 2.5], ["#fff", 1]]) {
        context.strokeStyle = colour;
        context.lineWidth = (line * devicePixelRatio) / this.scale;
        context.stroke();
      }
    }
  }
}
