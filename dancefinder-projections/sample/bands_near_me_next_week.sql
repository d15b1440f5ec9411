-- Elin, of Örebro, is a sample user; "today" is the day of the newest sample event. Distance on the sphere (haversine), in km.
WITH me AS (
    SELECT subject, name, radians(latitude) AS latitude, radians(longitude) AS longitude
    FROM origin
    WHERE id = '30bbd617-3470-4306-921b-965b34def098'
), today AS (
    SELECT MAX(recorded_at)::date AS day FROM events
), near AS (
    SELECT h.id, h.name, h.city, h.municipality, h.state,
           2 * 6371 * asin(sqrt(
               sin((radians(h.latitude) - me.latitude) / 2) ^ 2
               + cos(me.latitude) * cos(radians(h.latitude)) * sin((radians(h.longitude) - me.longitude) / 2) ^ 2
           )) AS km
    FROM dance_hall h, me
)
SELECT to_char(e.date, 'Dy DD Mon') AS day,
       b.name AS band,
       near.name || ', ' || near.city AS "where",
       round(near.km) || ' km' AS distance
FROM event e
JOIN band b ON b.id = e.band_id
JOIN near ON near.id = e.dance_hall_id
CROSS JOIN me
CROSS JOIN today
WHERE e.date BETWEEN today.day AND today.day + 7
  AND near.km < 100
  AND NOT EXISTS (SELECT FROM ignored_band i WHERE i.subject = me.subject AND i.band_id = e.band_id)
  AND NOT EXISTS (SELECT FROM ignored_dance_hall i WHERE i.subject = me.subject AND i.dance_hall_id = near.id)
  AND NOT EXISTS (SELECT FROM ignored_city i WHERE i.subject = me.subject AND i.city = near.city)
  AND NOT EXISTS (SELECT FROM ignored_municipality i WHERE i.subject = me.subject AND i.municipality = near.municipality)
  AND NOT EXISTS (SELECT FROM ignored_state i WHERE i.subject = me.subject AND i.state = near.state)
ORDER BY e.date, near.km;
