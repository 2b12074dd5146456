"""The examples in the help of each verb; `adhere --help` shows the first one of each."""

EXAMPLES = {
    "inpaint": (
        "adhere inpaint photo.jpg --mask mask.png -o out.png",
        "adhere inpaint cutout.png -o filled.png [dim](the transparent part is inpainted)[/dim]",
        "adhere inpaint - --mask mask.png -o out.png --json - < photo.jpg",
        "adhere inpaint photo.jpg --mask mask.png -o out.png --solver ddnm --steps 100 --seed 7 --json report.json",
        'adhere inpaint photo.jpg --mask mask.png -o out.png --model path/to/diffusers-folder --prompt "a brick wall"',
        "adhere inpaint photo.jpg --box 40,60,32,32 --color '#ff0000' --grow 2 --save-mask mask.png -o out.png",
        "adhere inpaint photo.jpg --mask mask.png --feather 8 -o out.png --num-images 4 --contact-sheet all.png",
        "adhere inpaint photo.jpg --mask mask.png -o mean.png --mean --uncertainty deviation.png",
        "adhere inpaint photo.jpg --mask mask.png -o out.jpg --quality 90 --mark-edited --preview now.png",
        "adhere inpaint photo.jpg --mask mask.png -o out.png --dry-run",
    ),
    "outpaint": (
        "adhere outpaint photo.jpg -o wide.png --left 128 --right 25%",
        "adhere outpaint photo.jpg -o wide.png --aspect 16:9 --seed 7",
    ),
    "upscale": (
        "adhere upscale small.png -o large.png",
        "adhere upscale small.png -o large.png --factor 2 --seed 7",
        "adhere upscale small.jpg -o large.png --size 1920x1280 --kernel bicubic --noise 0.02",
    ),
    "denoise": (
        "adhere denoise noisy.jpg -o clean.png",
        "adhere denoise noisy.jpg -o clean.png --sigma 0.1",
    ),
    "deblur": (
        "adhere deblur blurred.jpg -o sharp.png --psf gaussian:2",
        "adhere deblur shaken.jpg -o sharp.png --psf motion:15,30 --noise 0.01",
        "adhere deblur blurred.jpg -o sharp.png --psf star.png [dim](the picture of a point)[/dim]",
    ),
    "colorize": (
        "adhere colorize gray.jpg -o colored.png --hints strokes.png",
        "adhere colorize gray.jpg -o colored.png --hints strokes.png --hint-noise 0.1 --seed 7",
    ),
    "generate": (
        'adhere generate -o heart.png --prompt "a red heart, 3d" --model adhere-emoji',
        'adhere generate -o heart.png --prompt "a red heart" --negative-prompt "blurred, text" --guidance-scale 5 '
        "--size 768x512 --model checkpoint.safetensors",
        "adhere generate -o texture.png --size 256x128",
    ),
    "style": (
        "adhere style -o new.png --reference painting.jpg --model path/to/folder",
        'adhere style -o street.png --reference painting.jpg --prompt "a street" --model path/to/diffusers-folder',
    ),
    "layout": (
        "adhere layout -o heart.png --reference sketch.png --model adhere-emoji",
        'adhere layout -o heart.png --reference sketch.png --prompt "a red heart, 3d" --model adhere-emoji',
    ),
    "silhouette": (
        "adhere silhouette -o cat.png --reference shape.png --model adhere-emoji",
        'adhere silhouette -o cat.png --reference shape.png --prompt "a cat, 3d" --model adhere-emoji --size 64x64',
    ),
}
